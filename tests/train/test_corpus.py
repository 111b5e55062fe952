"""Training data of every kind as records: read, or refused in one sentence, whatever bytes a file holds."""

import gzip
import json
import lzma
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.errors import DataError, ModularBaseError
from modularbase_core.train.corpus import first_message, read_records, sample_characters
from modularbase_core.train.messages import read_messages
from modularbase_core.train.recipe import Source

SAID = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
KINDS = [kind + packed for kind in ("a.jsonl", "a.txt", "a.md", "a.py") for packed in PACKERS]


def written(tmp_path, *records):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def records_of(name: str, content: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return [record.whole for record in read_records(path)]


def check(name: str, content: bytes) -> None:
    told = ""
    texts: list[str] = []
    try:
        texts = records_of(name, content)
    except ModularBaseError as error:
        told = str(error)
    assert texts or (name in told and "\n" not in told)
    for text in texts:
        assert text.strip() or name.startswith("a.jsonl")
        text.encode("utf-8")


@given(st.sampled_from(KINDS), st.binary(max_size=300))
def test_any_bytes_are_records_or_one_sentence(name, content):
    check(name, content)


@given(st.sampled_from(KINDS), st.binary(max_size=300), st.integers(0, 120))
def test_any_packed_bytes_are_records_or_one_sentence_cut_short_or_not(name, content, cut):
    packed = PACKERS[Path(name).suffix if Path(name).suffix in PACKERS else ""](content)
    check(name, packed)
    check(name, packed[:cut])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["text", "prompt", "response", "messages", "lang", "source", "role"])
MESSAGE = st.fixed_dictionaries({}, optional={"role": JSON | st.sampled_from(["user", "assistant"]), "content": JSON})


@given(st.lists(st.dictionaries(FIELDS, JSON | st.lists(MESSAGE, max_size=3), max_size=4) | JSON, max_size=3))
def test_any_json_is_records_or_one_sentence(values):
    check("a.jsonl", "\n".join(map(json.dumps, values)).encode())


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\f"), max_size=300))
def test_text_loses_nothing_but_empty_lines_around_it(text):
    try:
        found = records_of("a.txt", text.encode())
    except DataError:
        assert not text.removeprefix("\ufeff").strip()
    else:
        clean = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
        assert "".join(found).split() == clean.split()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.md", "a.py", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_a_record_is_one_sentence(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=f"{name} holds no record with any text; check that it is the right one"):
        list(read_records(path))


def test_records_without_any_text_are_left_out(tmp_path):
    assert [one.text for one in read_records(written(tmp_path, {"text": " \n"}, {"text": "t"}))] == ["t"]
    with pytest.raises(DataError, match="holds no record"):
        list(read_records(written(tmp_path, {"text": ""})))


def test_a_folder_is_read_in_order_and_code_that_is_no_text_is_told_of(tmp_path):
    (tmp_path / "b.md").write_text("# Page")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "c.py").write_bytes(b"x = '\xff\xfe'\n")
    (tmp_path / "d.py").write_bytes(b"\0\0\0")
    (tmp_path / "e.py").write_text("x = 1\n")
    told = []
    records = list(read_records(tmp_path, told.append))
    assert [(one.whole, one.language) for one in records] == [("text", ""), ("# Page", ""), ("x = 1\n", "code")]
    assert [sentence.split(" ")[2].rpartition("/")[2] for sentence in told] == ["c.py:1", "d.py"]
    with pytest.raises(DataError, match=r"c\.py:1 is not UTF-8 at byte 5"):  # named itself, it is meant
        list(read_records(tmp_path / "c.py"))


def test_a_bad_text_in_a_folder_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt:1 is not UTF-8 at byte 3"):
        list(read_records(tmp_path))


def test_a_sample_stops_at_so_many_characters_and_depends_on_the_seed(tmp_path):
    path = written(tmp_path, *({"text": f"text {number}"} for number in range(10)), {"messages": SAID})
    first = list(sample_characters([path], 20, 1))
    assert first == list(sample_characters([path], 20, 1)) != list(sample_characters([path], 20, 2))
    assert 20 <= sum(map(len, first)) < 40
    assert "be brief\nhi" in list(sample_characters([path], 1000, 1))


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
