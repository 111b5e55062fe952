"""What is evaluated on: records of every form, their domains, and the same ones every time."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from modularbase_core.errors import DataError
from modularbase_core.evaluate.cases import domain_of, read_cases


def write(path, *values):
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def only(path, *values):
    _, cases = read_cases([write(path, *values)])
    (case,) = cases
    return case


def test_a_question_with_its_response(tmp_path):
    case = only(tmp_path / "own.jsonl", {"prompt": "What is 2 + 2?", "response": "4", "final": "4"})
    assert (case.domain, case.labelled, case.question, case.response) == ("own", False, "What is 2 + 2?", "4")
    assert case.message == case.question
    assert [one["role"] for one in case.record.messages] == ["user", "assistant"]
    assert case.value["final"] == "4"


def test_a_conversation_is_asked_up_to_its_last_question(tmp_path):
    said = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me.")]
    case = only(tmp_path / "own.jsonl", {"messages": [{"role": role, "content": text} for role, text in said]})
    assert [one.content for one in case.asked] == ["Be brief.", "Hi.", "Hello.", "Who?"]
    assert (case.response, case.message) == ("Me.", "Hi.")


def test_plain_text_asks_nothing(tmp_path):
    case = only(tmp_path / "own.jsonl", {"text": "Once upon a time."})
    assert (case.asked, case.question, case.response, case.message) == ((), "", "", "Once upon a time.")


@pytest.mark.parametrize(
    ("value", "question", "response"),
    [
        (
            {"prompt": "def f():", "canonical_solution": "    return 1", "test": "", "entry_point": "f"},
            "def f():",
            "    return 1",
        ),
        ({"text": "Write f.", "code": "def f(): pass", "test_list": []}, "Write f.", "def f(): pass"),
        ({"question": "How many?", "answer": "So 3.\n#### 3"}, "How many?", "So 3.\n#### 3"),
        ({"prompt": "def f():", "test": "assert f"}, "def f():", ""),
    ],
)
def test_published_forms_are_taken(tmp_path, value, question, response):
    case = only(tmp_path / "own.jsonl", value)
    assert (case.question, case.response) == (question, response)


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("legal/test.jsonl.xz", "legal"),
        ("legal/zh_test.jsonl.xz", "legal"),
        ("base/books_valid.jsonl", "base"),
        ("base/books_train-01.jsonl.xz", "base"),
        ("x/my-questions.jsonl.gz", "my-questions"),
        ("x/humaneval.jsonl", "humaneval"),
        ("x/latest.jsonl", "latest"),
        ("x/notes.md", "notes"),
    ],
)
def test_a_files_name_or_folder_tells_its_domain(path, domain):
    assert domain_of(Path(path)) == domain


def test_a_record_or_the_caller_may_name_the_domain(tmp_path):
    path = write(tmp_path / "law" / "test.jsonl.xz", {"text": "a", "domain": "python"}, {"text": "b", "domain": " "})
    _, cases = read_cases([path])
    assert [(case.domain, case.labelled) for case in cases] == [("python", True), ("law", False)]
    _, cases = read_cases([f"mine={path}"])
    assert [case.domain for case in cases] == ["python", "mine"]


def test_a_file_whose_name_has_an_equals_sign_is_that_file(tmp_path):
    sources, _ = read_cases([write(tmp_path / "a=b.jsonl", {"text": "x"})])
    assert [(one.domain, one.records) for one in sources] == [("a=b", 1)]


def test_sources_are_counted_and_known_by_their_bytes(tmp_path):
    values = [{"text": f"number {number}"} for number in range(50)]
    paths = [write(tmp_path / name, *values) for name in ("one.jsonl", "two.jsonl.gz", "three.jsonl.xz")]
    sources, cases = read_cases(paths, limit=7)
    assert [(one.records, one.taken) for one in sources] == [(50, 7)] * 3
    assert len({one.sha256 for one in sources}) == 3
    texts = [case.message for case in cases]
    assert texts[:7] == texts[7:14] == texts[14:]
    assert texts[:7] == sorted(texts[:7], key=lambda text: int(text.split()[1]))
    assert [case.message for case in read_cases(paths[:1], limit=50)[1]] == [value["text"] for value in values]


def test_folders_and_plain_texts_are_read_too(tmp_path):
    write(tmp_path / "one.jsonl", {"text": "a"})
    (tmp_path / "note.txt").write_text("Some text.")
    sources, cases = read_cases([str(tmp_path)])
    assert [one.domain for one in sources] == [tmp_path.name, "one"]  # a folder of pages is one domain
    assert len(cases) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no record"),
        (b"\n \n", "holds no record"),
        (b"{}\n", "has none of text, prompt/response, messages"),
        (b'{"text": 1}\n', "has a text that is a number"),
        (b'{"text": "a"\n', ":1 is not JSON"),
        (b'{"messages": []}\n', "messages is no list"),
        (b'{"prompt": 3, "response": "x"}\n', "has a prompt that is a number"),
        (b"\xff\xfe\n", "is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, content, told):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as raised:
        read_cases([str(path)])
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_cases([str(tmp_path / "none.jsonl")])
