"""Read JSON lines: an object a line, in the forms text, prompt/response or messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from modularbase_core.errors import DataError
from modularbase_core.sdk.jsonfile import shown
from modularbase_core.text.template import ROLES
from modularbase_core.train.readers.opening import LONGEST_CHARACTERS, Meter, open_text
from modularbase_core.train.readers.record import Message, Record

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; a bad line raises DataError with its number."""
    for _, value in _objects(path, None):
        yield value


def read_json_records(path: Path, meter: Meter | None = None) -> Iterator[Record]:
    """Yield the records of a JSONL file that have any text; one of another form raises DataError with its line."""
    for number, value in _objects(path, meter):
        record = record_of(value, f"{path}:{number}")
        if record.text is None or record.text.strip():
            yield record


def first_message(value: dict[str, Any], where: str) -> str:
    """Return what a record's user says first: its text or prompt, or the first of its messages that is the user's."""
    if "messages" in value:
        said = [message["content"] for message in _messages(value["messages"], where) if message["role"] == "user"]
        if not said:
            raise DataError(f"{where} has no message of the user; add it or remove the record")
        return said[0]
    return _text(value, "text" if "text" in value else "prompt", where)


def _objects(path: Path, meter: Meter | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path, meter) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if line.strip():
                yield number, _object(line, f"{path}:{number}")


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_CHARACTERS + 1):
        number += 1
        if len(line) > LONGEST_CHARACTERS:
            raise DataError(
                f"{path}:{number} has more than {LONGEST_CHARACTERS:,} characters, too many for one record; "
                "write one object a line, and split what is longer"
            )
        yield line


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply; write text, prompt and response, or messages") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number is too long"
        hint = "it holds NUL bytes: save it as UTF-8" if "\0" in line else "write one object a line, or remove the line"
        raise DataError(f"{where} is not JSON ({reason}); {hint}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} holds {_kind(value)}, not an object; write one object a line")
    return value


def record_of(value: dict[str, Any], where: str) -> Record:
    """Return an object as a record; raises DataError, beginning with `where`, for one of another form."""
    language, source = (_label(value, key) for key in ("lang", "source"))
    if "messages" in value:
        return Record(None, _messages(value["messages"], where), language, source)
    if "response" in value:
        said = (("user", _text(value, "prompt", where)), ("assistant", _text(value, "response", where)))
        return Record(None, tuple({"role": role, "content": text} for role, text in said), language, source)
    if "text" in value:
        return Record(_text(value, "text", where), (), language, source)
    raise DataError(f"{where} has none of text, prompt/response, messages; add one")


def _label(value: dict[str, Any], key: str) -> str:
    return given if isinstance(given := value.get(key), str) else ""


# value: whatever JSON held
def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{where}: messages is no list of objects with role and content; write it so")
    for one in value:
        if not isinstance(role := one.get("role"), str) or role not in ROLES:
            raise DataError(f"{where} has a message of role {shown(role)}; use one of {', '.join(ROLES)}")
    return tuple({"role": one["role"], "content": _text(one, "content", where)} for one in value)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    if key not in value:
        raise DataError(f"{where} lacks {key}; write one")
    if not isinstance(text := value[key], str):
        raise DataError(f"{where} has a {key} that is {_kind(text)}, no text; write one or remove the record")
    return text


# value: whatever JSON held
def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
