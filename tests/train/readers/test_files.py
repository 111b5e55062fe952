"""What an entry of `files` names: a file, a folder, a glob."""

import re

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.readers.files import LARGEST_CODE_BYTES, find_files


def make(root, *names, content="x\n"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def found(root, entry=""):
    return [str(one.path.relative_to(root)) for one in find_files(root / entry)]


def test_a_folder_gives_text_of_its_author_in_order_and_nothing_else(tmp_path):
    wanted = ["a.jsonl.gz", "b.txt", "c/d.py", "c/e.MD", "c/f.jsonl", "g.rst", "h.json.xz"]
    make(tmp_path, *wanted, ".git/x.py", "node_modules/x.js", "c/vendor/x.c", "c/__pycache__/x.py", "x.egg-info/x.txt")
    make(tmp_path, "picture.png", "settings.json", ".hidden.py", "c/x.min.js", "LICENSE")
    make(tmp_path, "c/huge.py", content="x" * (LARGEST_CODE_BYTES + 1))
    assert sorted(found(tmp_path)) == wanted
    assert found(tmp_path) == found(tmp_path)
    assert not any(one.named for one in find_files(tmp_path))


def test_a_glob_gives_what_can_be_read_of_its_matches(tmp_path):
    make(tmp_path, "a-1.jsonl", "a-0.jsonl", "a-2.png", "b/c/d.md", "b/e.md", "a-3/x.txt")
    assert found(tmp_path, "a-*") == ["a-0.jsonl", "a-1.jsonl", "a-3/x.txt"]
    assert found(tmp_path, "**/*.md") == ["b/c/d.md", "b/e.md"]
    assert found(tmp_path, "a-[01].jsonl") == ["a-0.jsonl", "a-1.jsonl"]


def test_a_name_with_brackets_is_a_name_when_there_is_such_a_file(tmp_path):
    make(tmp_path, "a[1].txt")
    assert found(tmp_path, "a[1].txt") == ["a[1].txt"]


def test_a_packed_file_without_another_suffix_holds_json_lines(tmp_path):
    make(tmp_path, "chats.xz", "chats.jsonl")
    assert find_files(tmp_path / "chats.xz")[0].reader is find_files(tmp_path / "chats.jsonl")[0].reader


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("none.jsonl", "none.jsonl does not exist; check the data folder and the recipe's file names"),
        ("*.jsonl", "*.jsonl; check the data folder and the recipe's names"),
        ("a.pdf", "a.pdf is of no kind that is read; give .jsonl, .txt, .md, .rst or code, plain or packed"),
        ("empty", "empty holds no file that can be read; give .jsonl, .txt, .md, .rst or code"),
    ],
)
def test_an_entry_that_names_nothing_to_read_is_one_sentence(tmp_path, entry, told):
    make(tmp_path, "a.pdf", "empty/b.png")
    with pytest.raises(DataError, match=re.escape(told)):
        find_files(tmp_path / entry)
