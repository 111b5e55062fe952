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
        language, source = str(value.get("lang", "")), str(value.get("source", ""))
        if "messages" in value:
            messages = tuple({"role": m["role"], "content": m["content"]} for m in value["messages"])
        elif "response" in value:
            messages = (
                {"role": "user", "content": value["prompt"]},
                {"role": "assistant", "content": value["response"]},
            )
        elif "text" in value:
            yield Record(value["text"], (), language, source)
            continue
        else:
            raise DataError(f"{path}: record {number} has none of text, prompt/response, messages")
        yield Record(None, messages, language, source)


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
