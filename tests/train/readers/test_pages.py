"""Files that are one document each."""

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.readers import opening
from modularbase_core.train.readers.pages import read_code_records, read_page_records


@pytest.mark.parametrize("front", ["---\ntitle: x\n---\n", "+++\ntitle = 'x'\n+++\n", "---\r\ntitle: x\r\n...\r\n", ""])
def test_a_page_keeps_its_headings_and_loses_its_front_matter(tmp_path, front):
    path = tmp_path / "a.md"
    path.write_bytes(f"{front}# Title\n\ntext\n\n---\n\nmore\n".encode())
    (record,) = read_page_records(path)
    assert (record.text, record.language, record.source) == ("# Title\n\ntext\n\n---\n\nmore", "", "a.md")


def test_a_rule_without_another_is_no_front_matter(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("---\n# Title\n")
    assert [record.text for record in read_page_records(path)] == ["---\n# Title"]


def test_a_page_that_is_front_matter_alone_is_no_record(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("---\ntitle: x\n---\n")
    assert list(read_page_records(path)) == []


def test_code_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("\n\tx = 1\n\n")
    (record,) = read_code_records(path)
    assert (record.text, record.language) == ("\n\tx = 1\n\n", "code")


def test_what_is_too_long_for_one_document_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "LONGEST_CHARACTERS", 1000)
    path = tmp_path / "a.md"
    path.write_text("a" * 1001)
    with pytest.raises(DataError, match=r"a\.md has more than 1,000 characters, too many for one document; split it"):
        list(read_page_records(path))
