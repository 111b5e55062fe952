"""Records as they come from their authors: read, or refused in one sentence with the record's number."""

import json
import re

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.corpus import first_message, read_records
from modularbase_core.train.messages import read_messages
from modularbase_core.train.packing import Source

SAID = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
MISTAKES = [
    ({"prompt": "hi"}, "record 2 has none of text, prompt/response, messages; add one"),
    ({"prompt": 5, "response": "a"}, "record 2 has a prompt that is no text; write one"),
    ({"response": "a"}, "record 2 lacks prompt; write one"),
    ({"text": None}, "record 2 has a text that is no text; write one"),
    ({"messages": "hi"}, "record 2: messages is no list of objects with role and content; write it so"),
    ({"messages": ["hi"]}, "record 2: messages is no list of objects with role and content; write it so"),
    (
        {"messages": [{"role": "human", "content": "hi"}]},
        "record 2 has a message of role 'human'; use one of system, user, assistant",
    ),
    ({"messages": [{"role": "user"}]}, "record 2 lacks content; write one"),
]


def written(tmp_path, *records):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_the_three_forms_are_read(tmp_path):
    path = written(tmp_path, {"text": "t", "lang": "en"}, {"prompt": "p", "response": "r"}, {"messages": SAID})
    texts, chat, messages = read_records(path)
    assert (texts.text, texts.language) == ("t", "en")
    assert [(one["role"], one["content"]) for one in chat.messages] == [("user", "p"), ("assistant", "r")]
    assert list(messages.messages) == SAID


@pytest.mark.parametrize(("record", "told"), MISTAKES)
def test_a_record_that_training_cannot_use_is_one_sentence(tmp_path, record, told):
    with pytest.raises(DataError, match=re.escape(f"chats.jsonl: {told}")):
        list(read_records(written(tmp_path, {"text": "t"}, record)))


def test_of_every_form_the_users_first_words_are_a_message(tmp_path):
    written(tmp_path, {"text": "t"}, {"prompt": "p", "response": "r"}, {"prompt": "q"}, {"messages": SAID})
    found = read_messages([Source(files=("chats.jsonl",), tokens=9)], tmp_path, tmp_path, 0)
    assert sorted(one.text for one in found) == ["hi", "p", "q", "t"]


def test_a_record_without_a_users_words_is_refused(tmp_path):
    with pytest.raises(DataError, match="x has no message of the user; add it or remove the record"):
        first_message({"messages": SAID[:1]}, "x")
    written(tmp_path, {"question": "p"})
    with pytest.raises(DataError, match=r"a record of chats\.jsonl lacks prompt; write one"):
        read_messages([Source(files=("chats.jsonl",), tokens=9)], tmp_path, tmp_path, 0)
