"""JSON as a pack's files hold it: UTF-8, each key once, finite numbers, and not too much of it.

Stricter than the standard library, which takes NaN, keeps the last of two equal keys and guesses encodings: two
readers of one pack must not see different things.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

from modularbase_core.errors import ModularBaseError

_MAX_DIGITS: Final = 18  # whole numbers stay within 64 bits


def read_json(path: Path, limit_bytes: int, error: type[ModularBaseError]) -> Any:  # Any: whatever JSON holds
    """Read the JSON of `path`; raises `error`, one sentence that begins with `path`."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except FileNotFoundError as missing:
        raise error(f"{path} is missing; install the pack again") from missing
    except OSError as unreadable:
        raise error(f"{path} cannot be read ({unreadable.strerror}); check its permissions") from unreadable
    if len(content) > limit_bytes:
        raise error(f"{path} is larger than {limit_bytes >> 20} MiB; shorten it")
    try:
        return parse_json(content)
    except ValueError as wrong:
        raise error(f"{path} is not JSON ({wrong}); correct it or install the pack again") from wrong


def parse_json(content: bytes) -> Any:  # Any: whatever JSON holds
    """Read a JSON value; raises ValueError, whose text is a reason to put in brackets."""
    try:
        text = content.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise ValueError("a string holds half a surrogate pair") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def shown(value: object) -> str:
    """Return a value as a sentence can show it: short, and nothing in it that a terminal obeys."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return whole


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _float(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{shown(text)} is too large a number")
    return value


def _int(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"{shown(text)} is too large a number")
    return int(text)
