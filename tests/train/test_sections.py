"""Pages as questions and answers."""

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.train.messages import read_messages
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Source
from modularbase_core.train.sections import PHRASINGS, answers_of, messages_of, plain, questions_of, read_sections

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


def test_routing_messages_of_pages_are_questions_about_their_headings(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(PAGE)
    for name in ("notes", "notes/a.md", "notes/*.md"):
        found = read_messages([Source(files=(name,), tokens=50, domain="Rust")], tmp_path, tmp_path, seed=1)
        said = [message.text for message in found]
        assert len(set(said)) == 2 * PHRASINGS
        assert all("sing Structs" in text or "ethods and spawn_task" in text for text in said)
        assert {message.domain for message in found} == {"Rust"}


def test_a_subject_is_named_in_some_questions_and_without_one_in_none() -> None:
    page = "\n".join(f"# Part {number}\n\n{BODY}\n" for number in range(40))
    named = list(questions_of(page, "Rust", random.Random(1)))
    assert 5 < sum("Rust" in text for text in named) < 75
    assert not any("{" in text for text in named)
    assert any(text.endswith("?") for text in questions_of(page, "", random.Random(1)))
    assert next(questions_of(f"# 结构体\n\n{BODY}", "", random.Random(1))).count("结构体") == 1


def test_a_page_without_headings_gives_its_first_sentences() -> None:
    assert list(questions_of(f"Before. {BODY}", "Rust", random.Random(1))) == list(messages_of(f"Before. {BODY}"))


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
