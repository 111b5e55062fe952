"""Lines of JSON: the three forms of a record, and each mistake told with its file and line."""

import json
import re

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.readers import json_lines
from modularbase_core.train.readers.json_lines import read_json_lines, read_json_records

SAID = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
FORM = "messages is no list of objects with role and content; write it so"
MISTAKES = [
    ({"prompt": "hi"}, " has none of text, prompt/response, messages; add one"),
    ({"prompt": 5, "response": "a"}, " has a prompt that is a number, no text; write one or remove the record"),
    ({"prompt": "a", "response": None}, " has a response that is null, no text; write one or remove the record"),
    ({"response": "a"}, " lacks prompt; write one"),
    ({"text": None}, " has a text that is null, no text; write one or remove the record"),
    ({"text": ["a"]}, " has a text that is a list, no text; write one or remove the record"),
    ({"text": True}, " has a text that is true or false, no text; write one or remove the record"),
    ({"messages": "hi"}, f": {FORM}"),
    ({"messages": ["hi"]}, f": {FORM}"),
    ({"messages": []}, f": {FORM}"),
    ({"messages": [{"role": "human", "content": "hi"}]}, " has a message of role 'human'; use one of system, user, "),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, " has a message of role ['user']; use one of system, user, "),
    ({"messages": [{"role": "user"}]}, " lacks content; write one"),
    ({"messages": [{"role": "user", "content": {}}]}, " has a content that is an object, no text; write one"),
]
LINES = [
    ('{"text": ', " is not JSON (Expecting value); write one object a line, or remove the line"),
    ('["a"]', " holds a list, not an object; write one object a line"),
    ("null", " holds null, not an object; write one object a line"),
    ('{"text": "\\ud800"}', " holds half a surrogate pair"),
    ("[" * 200_000, " is nested too deeply"),
    ('{"text": ' + "9" * 5000 + "}", " is not JSON (a number is too long)"),
    ('{"text": "a\0"}', " is not JSON (Invalid control character at); it holds NUL bytes: save it as UTF-8"),
]


def test_the_three_forms_are_read(tmp_path):
    path = tmp_path / "chats.jsonl"
    records = [{"text": "t", "lang": "en", "source": 5}, {"prompt": "p", "response": "r"}, {"messages": SAID}]
    path.write_text("\n\n".join(map(json.dumps, records)))
    texts, chat, messages = read_json_records(path)
    assert (texts.text, texts.language, texts.source) == ("t", "en", "")
    assert [(one["role"], one["content"]) for one in chat.messages] == [("user", "p"), ("assistant", "r")]
    assert list(messages.messages) == SAID


@pytest.mark.parametrize(("record", "told"), MISTAKES)
def test_a_record_that_training_cannot_use_is_one_sentence_with_its_line(tmp_path, record, told):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"text": "t"}) + "\n\n" + json.dumps(record))
    with pytest.raises(DataError, match=re.escape(f"chats.jsonl:3{told}")):
        list(read_json_records(path))


@pytest.mark.parametrize(("line", "told"), LINES, ids=[told[:24] for _, told in LINES])
def test_a_line_that_is_no_object_is_one_sentence(tmp_path, line, told):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"text": "t"}) + f"\n{line}\n")
    with pytest.raises(DataError, match=re.escape(f"chats.jsonl:2{told}")):
        list(read_json_lines(path))


def test_a_whole_surrogate_pair_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}')
    assert [record.text for record in read_json_records(path)] == ["😀"]


def test_a_giant_line_is_one_sentence_and_never_in_memory_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "LONGEST_CHARACTERS", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t"}\n{"text": "' + "a" * 5000 + '"}')
    with pytest.raises(DataError, match=r"a\.jsonl:2 has more than 1,000 characters, too many for one record"):
        list(read_json_records(path))
