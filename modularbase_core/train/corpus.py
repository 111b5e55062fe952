"""Stream records from JSONL files (plain, .gz or .xz) and sample them.

Decides how a record becomes messages or plain text; packing into windows is left to `train.packing`.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modularbase_core.errors import DataError
from modularbase_core.text.template import ROLES

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One training document: either plain `text` or a list of `messages`."""

    text: str | None
    messages: tuple[Message, ...]
    language: str
    source: str


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file, decompressing by its suffix."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; a bad line raises DataError with its number."""
    if not path.exists():
        raise DataError(f"{path} does not exist; check the data folder and the recipe's file names")
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number} is not JSON ({error.msg}); fix or remove the line") from error
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number} holds {type(value).__name__}, not an object")
            yield value


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in the forms text, prompt/response or messages."""
    for number, value in enumerate(read_json_lines(path), 1):
        where = f"{path}: record {number}"
        language, source = str(value.get("lang", "")), str(value.get("source", ""))
        if "messages" in value:
            yield Record(None, _messages(value["messages"], where), language, source)
        elif "response" in value:
            said = (("user", _text(value, "prompt", where)), ("assistant", _text(value, "response", where)))
            yield Record(None, tuple({"role": role, "content": text} for role, text in said), language, source)
        elif "text" in value:
            yield Record(_text(value, "text", where), (), language, source)
        else:
            raise DataError(f"{where} has none of text, prompt/response, messages; add one")


def first_message(value: dict[str, Any], where: str) -> str:
    """Return what a record's user says first: its text or prompt, or the first of its messages that is the user's."""
    if "messages" in value:
        said = [message["content"] for message in _messages(value["messages"], where) if message["role"] == "user"]
        if not said:
            raise DataError(f"{where} has no message of the user; add it or remove the record")
        return said[0]
    return _text(value, "text" if "text" in value else "prompt", where)


# value: whatever JSON held
def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{where}: messages is no list of objects with role and content; write it so")
    for one in value:
        if one.get("role") not in ROLES:
            raise DataError(f"{where} has a message of role {one.get('role')!r}; use one of {', '.join(ROLES)}")
    return tuple({"role": one["role"], "content": _text(one, "content", where)} for one in value)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(text := value.get(key), str):
        raise DataError(f"{where} {f'has a {key} that is no text' if key in value else f'lacks {key}'}; write one")
    return text


def sample_characters(paths: list[Path], characters: int, seed: int) -> Iterator[str]:
    """Yield texts of the files, whole records in random order, until `characters` is reached."""
    texts: list[str] = []
    for path in paths:
        for record in read_records(path):
            texts.append(record.text if record.text is not None else "\n".join(m["content"] for m in record.messages))
    random.Random(seed).shuffle(texts)
    taken = 0
    for text in texts:
        if taken >= characters:
            return
        taken += len(text)
        yield text
