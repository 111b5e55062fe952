"""Markdown as questions and answers: a heading asks, the text under it answers.

A pack that learns from pages alone would only go on writing pages; so it learns to answer. Where the headings are is
read by markdown-it (CommonMark), so that a `#` inside a code block is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from markdown_it import MarkdownIt

from modularbase_core.train.readers.record import Record

SHORTEST_CHARACTERS: Final = 80
"""Of a section's text; less is a list of links or an empty shelf."""
LONGEST_SENTENCE: Final = 240
_MARKS: Final = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[`*]|(?<!\w)_|_(?!\w)|<[^>]+>|\{#[^}]*\}")
_NUMBER: Final = re.compile(r"^[\d.]+\s+(?=\D)")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading without its marks, "" where there is none, and the text under it, down to the next heading."""

    heading: str
    text: str


def read_sections(markdown: str) -> list[Section]:
    """Return the sections of a page that have text; `markdown` is without front matter."""
    lines = markdown.splitlines()
    tokens = MarkdownIt("commonmark").parse(markdown)
    starts = [token.map for token in tokens if token.type == "heading_open" and token.level == 0 and token.map]
    titles = [
        tokens[number + 1].content
        for number, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    edges = [0, *(first for first, _ in starts), len(lines)]
    begins = [0, *(end for _, end in starts)]
    out = []
    for title, begin, end in zip(["", *titles], begins, edges[1:], strict=True):
        text = "\n".join(lines[begin:end]).strip()
        if len(text) >= SHORTEST_CHARACTERS:
            out.append(Section(_NUMBER.sub("", plain(title)), text))
    return out


def answers_of(record: Record) -> Iterator[Record]:
    """Yield a page as questions and answers, section by section; a record that is a conversation as it is."""
    if record.text is None:
        yield record
        return
    for section in read_sections(record.text):
        if section.heading:
            said = ({"role": "user", "content": section.heading}, {"role": "assistant", "content": section.text})
            yield Record(None, said, record.language, record.source)


def messages_of(markdown: str) -> Iterator[str]:
    """Yield what people who look for this page might write: its headings, and the first sentence of each section."""
    for section in read_sections(markdown):
        if section.heading:
            yield section.heading
        if sentence := _first_sentence(section.text):
            yield sentence


def plain(text: str) -> str:
    """Return a line of Markdown without its marks."""
    return " ".join(_MARKS.sub(lambda found: found[1] or "", text).split())


def _first_sentence(text: str) -> str:
    paragraph = next((part for part in text.split("\n\n") if part[:1].isalpha()), "")
    sentence = _SENTENCE_END.split(plain(paragraph), maxsplit=1)[0]
    return sentence if len(sentence) <= LONGEST_SENTENCE else ""
