"""What is evaluated on: the records of some files, each with its domain, its question and its right response.

Takes the forms that training takes, and as they are published HumanEval's (prompt, canonical_solution), MBPP's (text,
code) and GSM8K's (question, answer).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import DataError
from modularbase_core.sdk.files import file_sha256
from modularbase_core.text.template import Message
from modularbase_core.train.readers.files import Found, find_files
from modularbase_core.train.readers.json_lines import first_message, read_json_lines, read_json_records, record_of
from modularbase_core.train.readers.record import Record

SPLITS: Final = frozenset(("train", "valid", "validation", "val", "dev", "test", "heldout", "eval"))
"""Words that a file's name ends in where its folder names what it holds."""
_PROMPTS: Final = ("prompt", "question", "text")
_RESPONSES: Final = ("answer", "canonical_solution", "code")


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read. records: how many it holds; taken: how many of them are evaluated on."""

    path: str
    domain: str
    records: int
    taken: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Case:
    """One record. where: its file and number. labelled: the record itself names its domain.

    asked: the messages up to the last question, to be answered; none of plain text. response: what is right, empty
    where nothing says. message: what a router sees of it, the first question or the text. value: the record's fields.
    """

    where: str
    domain: str
    labelled: bool
    record: Record
    asked: tuple[Message, ...]
    response: str
    message: str
    value: Mapping[str, Any]  # Any: whatever JSON held

    @property
    def question(self) -> str:
        """The last question; empty for plain text."""
        return self.asked[-1].content if self.asked else ""


def read_cases(entries: Sequence[str], limit: int | None = None) -> tuple[list[Source], list[Case]]:
    """Read files, each `PATH` or `DOMAIN=PATH`; of one of more than `limit` records, the same random ones every time.

    A record's domain is its field `domain`, or its file's: what the entry says; of pages, texts and code in a folder
    that the entry names, that folder's name; the name of its folder where it is named as a split
    (`legal/zh_test.jsonl.xz` is legal), or else its own name. Raises DataError.
    """
    sources, cases = [], []
    for entry in entries:
        given, path = _parsed(entry)
        for found in find_files(path):
            in_folder = path.is_dir() and found.reader is not read_json_records
            domain = given or (path.resolve().name if in_folder else domain_of(found.path))
            here = _cases(found, domain)
            if not here and found.named:
                raise DataError(f"{found.path} holds no record; check that it is the right file")
            taken = here
            if limit is not None and len(here) > limit:
                taken = [here[number] for number in sorted(random.Random(0).sample(range(len(here)), limit))]
            sources.append(Source(str(found.path), domain, len(here), len(taken), file_sha256(found.path)))
            cases += taken
    return sources, cases


def domain_of(path: Path) -> str:
    """Return the domain that a file's name tells."""
    stem = re.sub(r"(\.(jsonl|ndjson|json|txt|text|md|rst|xz|gz))+$", "", path.name)
    words = re.split(r"[_\-.]", re.sub(r"[_-]\d+$", "", stem))
    folder = path.resolve().parent.name
    return folder if words[-1].lower() in SPLITS and folder else stem


def _parsed(entry: str) -> tuple[str, Path]:
    name, equals, path = entry.partition("=")
    if equals and name and path and not Path(entry).exists():
        return name, Path(path)
    return "", Path(entry)


def _cases(found: Found, domain: str) -> list[Case]:
    if found.reader is not read_json_records:
        return [_text_case(record, str(found.path), domain) for record in found.read()]
    values = enumerate(read_json_lines(found.path), 1)
    cases = (_case(value, f"{found.path}: record {number}", domain) for number, value in values)
    return [case for case in cases if case is not None]


def _text_case(record: Record, where: str, domain: str) -> Case:
    return Case(where, domain, False, record, (), "", record.text or "", {})


# value: whatever JSON held
def _case(value: dict[str, Any], where: str, domain: str) -> Case | None:
    """Return a record as a case; None where it holds no text."""
    told = value.get("domain")
    labelled = isinstance(told, str) and bool(told.strip())
    value = _in_our_words(value)
    record = _question_alone(value, where) or record_of(value, where)
    if not record.whole.strip():
        return None
    case = _text_case(record, where, str(told).strip() if labelled else domain)
    if record.text is not None:
        return replace(case, labelled=labelled, value=value)
    messages = list(record.messages)
    last = max((number for number, one in enumerate(messages) if one["role"] == "user"), default=-1)
    asked = [one for one in messages[: last + 1] if one["content"].strip()]
    response = messages[last + 1]["content"] if last + 1 < len(messages) else ""
    return replace(
        case,
        labelled=labelled,
        asked=tuple(Message(one["role"], one["content"]) for one in asked),
        response=response,
        message=first_message(value, where) if last >= 0 else record.whole,
        value=value,
    )


def _in_our_words(value: dict[str, Any]) -> dict[str, Any]:
    """Return a published record with the keys prompt and response."""
    if "messages" in value or "response" in value:
        return value
    response = next((value[key] for key in _RESPONSES if isinstance(value.get(key), str)), None)
    prompt = next((value[key] for key in _PROMPTS if isinstance(value.get(key), str)), None)
    if response is None or prompt is None:
        return value
    return {**value, "prompt": prompt, "response": response}


def _question_alone(value: dict[str, Any], where: str) -> Record | None:
    """Return a record that asks and says no answer, as a code task with tests alone does."""
    if "messages" in value or "response" in value or "text" in value or "prompt" not in value:
        return None
    return record_of({**value, "messages": [{"role": "user", "content": first_message(value, where)}]}, where)
