"""The right answer of a record, and whether what a model says gives it: numbers, options, words, short texts.

Decides where in a text its answer stands and when two are the same, in the spirit of the lm-evaluation-harness
(Gao et al., 2024).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modularbase_core.evaluate.numbers import numbers_in, whole_number
from modularbase_core.evaluate.options import chosen_label, chosen_letter, labels, lettered

_MARKS: Final = (
    re.compile(r"####\s*"),  # GSM8K's
    re.compile(r"\\boxed\{"),
    re.compile(r"\b(?:answer|result)\s*(?:is|are|:|=)\s*:?\s*|答案\s*(?:是|为|:|：)\s*", re.IGNORECASE),
)
_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Gold:
    """A right answer. kind: number, letter, label or text; options: the letters or words that it is one of.

    value: as the record writes it.
    """

    kind: str
    value: str
    options: tuple[str, ...] = ()

    def given_in(self, text: str) -> str | None:
        """Return what `text` gives as its answer, in this answer's kind, or None where it gives none."""
        if self.kind == "letter":
            return chosen_letter(text, self.options)
        if self.kind == "label":
            return chosen_label(text, self.options)
        if self.kind == "text":
            return stated_in(text) or text.strip() or None
        stated = numbers_in((stated_in(text) or "").rpartition("=")[2])
        every = stated[:1] or numbers_in(text)[-1:]  # a stated answer begins with its number, loose text ends with it
        return str(every[0]) if every else None

    def is_given_in(self, text: str) -> bool:
        """Tell whether `text` gives this answer."""
        given = self.given_in(text)
        if given is None:
            return False
        if self.kind == "number":
            return whole_number(given) == whole_number(self.value)
        return plain(given) == plain(self.value)


# value: whatever JSON held
def gold_of(value: Mapping[str, Any], question: str, response: str) -> Gold | None:
    """Return the right answer of a record: its field `final`, or what its response marks as the answer.

    GSM8K marks it by `#### 42`, others by `The answer is 42.` None where there is neither.
    """
    final = value.get("final")
    text = str(final).strip() if isinstance(final, (str, int, float)) else ""
    text = text or stated_in(response) or ""
    if not text:
        return None
    options = tuple(lettered(question))
    letter = text.strip("(). ").upper()
    if letter in options:
        return Gold("letter", letter, options)
    if words := labels(text, question):
        return Gold("label", text.strip(". "), words)
    return Gold("text" if whole_number(text) is None else "number", text)


def stated_in(text: str) -> str | None:
    """Return what `text` itself marks as its answer, to the end of that line, or None; the last mark counts."""
    for mark in _MARKS:
        found = list(mark.finditer(text))
        if found:
            line, _, _ = text[found[-1].end() :].partition("\n")
            if mark is _MARKS[1]:
                line = line.partition("}")[0]
            return line.strip().strip("*").rstrip(".。").strip("* ") or None
    return None


def plain(text: str) -> str:
    """Return a text to compare: NFKC, lower case, without punctuation, articles and doubled blanks."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in text)
    return " ".join(_ARTICLES.sub(" ", text).split())
