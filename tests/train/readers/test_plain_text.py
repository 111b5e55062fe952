"""Text files as documents: where they are cut, and that a line of any length is."""

from modularbase_core.train.readers.plain_text import (
    ENOUGH_CHARACTERS,
    MOST_CHARACTERS,
    read_text_records,
)


def documents(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text)
    return [record.text for record in read_text_records(path)]


def test_paragraphs_stay_together_until_they_are_enough(tmp_path):
    paragraph = "word " * 1000
    found = documents(tmp_path, "\n\n".join([paragraph] * 10))
    assert [len(one) // len(paragraph) for one in found] == [4, 4, 2]
    assert all(len(one) >= ENOUGH_CHARACTERS for one in found[:-1])


def test_what_says_that_a_document_ends_ends_it(tmp_path):
    long = "a line\n" * 40
    found = documents(tmp_path, f"one\n<|endoftext|>\ntwo\n\n\n\ntwo\n\ftop\n{long}\n\n\n  three\n")
    assert found == ["one", "two\n\n\n\ntwo", f"top\n{long}".rstrip(), "  three"]


def test_a_giant_line_is_cut_after_blanks_where_it_has_any(tmp_path):
    words = "word " * 40_000
    found = documents(tmp_path, words)
    assert "".join(found) == words
    assert max(map(len, found)) <= MOST_CHARACTERS
    assert all(one.endswith("word ") for one in found)
    endless = "字" * 150_000
    assert list(map(len, documents(tmp_path, endless))) == [MOST_CHARACTERS, MOST_CHARACTERS, 22_000]


def test_lines_without_a_blank_one_are_cut_between_lines(tmp_path):
    found = documents(tmp_path, "a line of some words\n" * 10_000)
    assert len(found) == 4
    assert max(map(len, found)) <= MOST_CHARACTERS
    assert all(one.startswith("a line") and one.endswith("words") for one in found)
