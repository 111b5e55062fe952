"""Markdown as questions and answers: a heading asks, the text under it answers.

A pack that learns from pages alone would only go on writing pages; so it learns to answer. Where the headings are is
read by markdown-it (CommonMark), so that a `#` inside a code block is none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from markdown_it import MarkdownIt

from modularbase_core.train.readers.record import Record

SHORTEST_CHARACTERS: Final = 80
"""Of a section's text; less is a list of links or an empty shelf."""
LONGEST_SENTENCE: Final = 240
_ASKED: Final = {
    "en": (
        "{x}",
        "What is {x}?",
        "What are {x}?",
        "How does {x} work?",
        "Explain {x}.",
        "How do I use {x}?",
        "Tell me about {x}",
        "When should I use {x}?",
        "give me an example of {x}",
    ),
    "zh": ("{x}", "什么是{x}？", "{x}是什么？", "{x}怎么用？", "请解释{x}", "介绍一下{x}", "{x}有什么用？"),
}
_ASKED_OF: Final = {
    "en": ("{x} in {subject}", "What does {x} mean in {subject}?", "Can you explain {x} in {subject}?"),
    "zh": ("{subject}的{x}", "{subject}里的{x}是什么意思？", "请解释{subject}的{x}"),
}
"""How people ask for what stands under a heading, without and with the name of its subject."""
PHRASINGS: Final = 2
"""Of a heading, each at random."""
_CHINESE: Final = re.compile(r"[\u4e00-\u9fff]")
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


def questions_of(markdown: str, subject: str, random_: random.Random) -> Iterator[str]:
    """Yield how people may ask for what a page tells: each heading in PHRASINGS forms, some with its subject's name.

    Questions are told apart by what they are about; headings as they stand would be told by being short, and keys of
    them took short questions about anything. A page without headings gives its first sentences.
    """
    asked = False
    for heading in (section.heading for section in read_sections(markdown) if section.heading):
        language = "zh" if _CHINESE.search(heading) else "en"
        forms = (*_ASKED[language], *(_ASKED_OF[language] if subject else ()))
        name = heading[0].lower() + heading[1:] if heading[1:2].islower() else heading
        yield from (form.format(x=name, subject=subject) for form in random_.sample(forms, PHRASINGS))
        asked = True
    if not asked:
        yield from messages_of(markdown)


def plain(text: str) -> str:
    """Return a line of Markdown without its marks."""
    return " ".join(_MARKS.sub(lambda found: found[1] or "", text).split())


def _first_sentence(text: str) -> str:
    paragraph = next((part for part in text.split("\n\n") if part[:1].isalpha()), "")
    sentence = _SENTENCE_END.split(plain(paragraph), maxsplit=1)[0]
    return sentence if len(sentence) <= LONGEST_SENTENCE else ""
