"""Pages as questions and answers."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.train.messages import read_messages
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Source
from modularbase_core.train.sections import answers_of, messages_of, plain, read_sections

BODY = "A struct groups values that belong together, and each of its fields has a name. " * 2
PAGE = f"""Before any heading there is a paragraph too. {BODY}

# 5.1 Using `Structs`

{BODY}

```sh
# this is a comment, no heading
```

Setext *heading*
----------------

See:

## [Methods](methods.md) and `spawn_task`

> {BODY}
"""


def test_headings_divide_a_page_and_a_comment_in_code_does_not() -> None:
    sections = read_sections(PAGE)
    assert [section.heading for section in sections] == ["", "Using Structs", "Methods and spawn_task"]
    assert "# this is a comment" in sections[1].text
    assert sections[2].text == f"> {BODY.strip()}"


def test_a_heading_asks_and_its_text_answers() -> None:
    first, second = answers_of(Record(PAGE, (), "en", "structs.md"))
    assert [message["role"] for message in first.messages] == ["user", "assistant"]
    assert first.messages[0]["content"] == "Using Structs"
    assert second.messages[1]["content"].startswith("> A struct")
    conversation = Record(None, first.messages, "en", "chat")
    assert list(answers_of(conversation)) == [conversation]


def test_messages_of_pages_are_headings_and_first_sentences(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(PAGE)
    expected = {
        "Before any heading there is a paragraph too.",
        "Using Structs",
        "A struct groups values that belong together, and each of its fields has a name.",
        "Methods and spawn_task",
    }
    for name in ("notes", "notes/a.md", "notes/*.md"):
        found = read_messages([Source(files=(name,), tokens=50)], tmp_path, tmp_path, seed=1)
        assert {message.text for message in found} == expected


def test_marks_of_markdown_are_taken_off_and_names_stay_whole() -> None:
    marked = "Use `spawn_task` **and** _wait_ for [it](x.md) <a id='1'></a>{#here}"
    assert plain(marked) == "Use spawn_task and wait for it"


@given(st.text(alphabet="# -=`\n>*_[]()ab。.", max_size=300))
def test_any_page_is_read_and_no_text_is_made_up(page: str) -> None:
    for section in read_sections(page):
        assert section.text
        assert all(line in page for line in section.text.splitlines())
    for message in messages_of(page):
        assert message.strip()
