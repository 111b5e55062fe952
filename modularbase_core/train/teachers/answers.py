"""What a teacher wrote: RUNS/NAME/teacher.jsonl, an answer a line with where it comes from, kept as it arrives.

A run that was stopped asks only for what is missing. Who answers is left to the other modules here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any, Final

from modularbase_core.errors import DataError
from modularbase_core.sdk.files import write_atomically
from modularbase_core.train.encoding import records_of
from modularbase_core.train.recipe import Recipe, Teacher

ANSWERS_FILE: Final = "teacher.jsonl"
TAKEN_FILE: Final = "responses.jsonl"
"""The answers that there are to learn from, in the prompts' order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and what names it in the file: what was asked, of whom, and how."""

    prompt: str
    key: str


class Answers:
    """The answers in a file; one that was half written when a run was killed is dropped.

    Raises DataError for a file that something else wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock, self._torn_at = path, Lock(), -1
        self._lines: dict[str, dict[str, Any]] = {}  # Any: JSON
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, asked: Asked) -> bool:
        return asked.key in self._lines

    def response(self, asked: Asked) -> str:
        """Return the answer to a prompt, "" where it was refused."""
        return str(self._lines[asked.key]["response"])

    def add(self, asked: Asked, response: str, **told: object) -> None:
        """Keep an answer with what there is to tell of it; from several threads, one after the other."""
        line = {"prompt": asked.prompt, "response": response, **told, "key": asked.key}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._torn_at >= 0:
                os.truncate(self.path, self._torn_at)
                self._torn_at = -1
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._lines[asked.key] = line

    def take(self, every: Sequence[Asked]) -> Path:
        """Write the answers to `every` prompt in their order, without those that are empty; return the file.

        Raises DataError when nothing is left.
        """
        said = [(one.prompt, self.response(one)) for one in every]
        lines = [
            json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False)
            for prompt, response in said
            if response.strip()
        ]
        if not lines:
            raise DataError(f"the teacher answered none of {len(every)} prompts with any text; look at {self.path}")
        path = self.path.with_name(TAKEN_FILE)
        write_atomically(path, [f"{line}\n".encode() for line in lines])
        return path

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            self._torn_at = whole
        for number, line in enumerate(raw[:whole].splitlines(), 1):
            try:
                value = json.loads(line)
                self._lines[value["key"]] = value
                assert isinstance(value["response"], str)
            except (ValueError, TypeError, KeyError, AssertionError) as error:
                raise DataError(
                    f"{self.path}:{number} is no answer of a teacher; remove the line or the file"
                ) from error


def prompts_of(recipe: Recipe, teacher: Teacher, data: Path) -> list[Asked]:
    """Return the prompts to ask: what users say first in the mix, each once, in an order that the seed gives.

    Raises DataError where the mix holds no conversation.
    """
    said = dict.fromkeys(
        message["content"]
        for source in recipe.mix
        for record in records_of(source, data)
        if record.text is None
        for message in record.messages[:2]
        if message["role"] == "user"
    )
    if not said:
        raise DataError(
            f"recipe {recipe.name!r}: the mix holds no conversation, so there is nothing to ask the teacher"
        )
    prompts = list(said)
    random.Random(recipe.seed).shuffle(prompts)
    return [Asked(prompt, _key(prompt, teacher)) for prompt in prompts[: teacher.prompts]]


def awaited(path: Path, every: Sequence[Asked]) -> Answers:
    """Return the answers once all are there, for a process that leaves the asking to the first."""
    while not all(one in (answers := Answers(path)) for one in every):
        time.sleep(1.0)
    return answers


def today() -> str:
    """Return the date, for what is told of an answer."""
    return datetime.now(timezone.utc).date().isoformat()


def _key(prompt: str, teacher: Teacher) -> str:
    """Name a question: another model, or one asked in another way, gives another answer."""
    how = [teacher.kind, teacher.model, teacher.base, teacher.pack, teacher.url, teacher.system]
    numbers = [teacher.longest, teacher.sampling_temperature]
    return hashlib.sha256(json.dumps([*how, *numbers, prompt]).encode()).hexdigest()[:32]
