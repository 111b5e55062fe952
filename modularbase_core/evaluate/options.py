"""The options that a question names: lettered ones, or words such as yes and no, and how an answer states one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

LABELS: Final = (
    ("yes", "no"),
    ("yes", "no", "maybe"),
    ("true", "false"),
    ("true", "false", "uncertain"),
    ("true", "false", "unknown"),
)
"""Words that an answer may be one of; the larger set where the question names all of its words."""

_LETTERS: Final = "ABCDEFGHIJ"
_OPTION: Final = re.compile(r"^[ \t]*\(?([A-J])[).:、．：][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


def lettered(question: str) -> dict[str, str]:
    """Return the texts of the options of `question` by letter, from A on without a gap; empty for fewer than two.

    Options are lines such as `A) 108`, `(B) 112` or `C. 116`; of several runs of them the last counts.
    """
    out: dict[str, str] = {}
    for letter, text in _OPTION.findall(question):
        if letter == "A":
            out = {}
        if len(out) < len(_LETTERS) and letter == _LETTERS[len(out)]:
            out[letter] = text
    return out if len(out) > 1 else {}


def labels(answer: str, question: str) -> tuple[str, ...]:
    """Return the words, in lower case, of which `answer` is one; empty where it is none."""
    word = answer.strip().strip(".").lower()
    fitting = [one for one in LABELS if word in one]
    asked = question.lower()
    named = [one for one in fitting if all(re.search(rf"\b{label}\b", asked) for label in one)]
    return max(named or fitting[:1], key=len, default=())


def stated(answer: str, response: str) -> tuple[str, str]:
    """Return what stands before and after `answer` in the last line of `response`, the form that answers are given in.

    `The answer is ` and `.` where it is not there, so that every option can be put in its place.
    """
    lines = response.strip().splitlines()
    last = lines[-1].strip() if lines else ""
    found = list(re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", last, re.IGNORECASE))
    if not found or len(last) > 80:
        return "The answer is ", "."
    return last[: found[-1].start()], last[found[-1].end() :]


def cased_like(label: str, answer: str) -> str:
    """Write a label as the answers write theirs: `True`, `true` or `TRUE`."""
    if answer.isupper() and len(answer) > 1:
        return label.upper()
    return label.capitalize() if answer[:1].isupper() else label


def chosen_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer chooses, or None: what it says is the answer, or else the last one alone.

    A capital A that begins a word group ("A dog") is an article.
    """
    letter = f"[{''.join(options)}]"
    named = rf"(?:answer|choice|option|答案|选项?)\W{{0,3}}(?:is|are|was|是|为|:|：)?\W{{0,4}}({letter})(?!\w)"
    phrase = re.findall(named, text, re.IGNORECASE)
    if phrase:
        return str(phrase[-1]).upper()
    alone = re.findall(rf"(?<![\w'’])({letter})(?![\w'’])(?!\s+[a-z])", text)
    return str(alone[-1]) if alone else None


def chosen_label(text: str, options: Sequence[str]) -> str | None:
    """Return the word of `options` that an answer gives, or None: after "the answer is", else its first, else its last.

    The first counts where the answer begins with it ("Yes, because no one..."), else the last that is there.
    """
    word, lower = "|".join(map(re.escape, options)), text.lower()
    phrase = re.findall(rf"(?:answer|conclusion|it)\s+(?:is|:)\W{{0,4}}({word})\b", lower)
    if phrase:
        return str(phrase[-1])
    begins = re.match(rf"\W*({word})\b", lower)
    if begins:
        return begins[1]
    alone = re.findall(rf"\b({word})\b", lower)
    return str(alone[-1]) if alone else None
