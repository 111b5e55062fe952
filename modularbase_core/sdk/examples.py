"""examples.json: messages that belong to a pack, with answers where it gives any.

Routing keys are made from the prompts, wherever a pack meets a router that its keys were not made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ManifestError, nearest
from modularbase_core.sdk.jsonfile import read_json

_KEYS: Final = ("prompt", "response")
_OLDER: Final = {"user": "prompt", "assistant": "response"}
_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Example:
    """A user's message and an answer to it; an empty response means that none is given."""

    prompt: str
    response: str = ""


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read a list of {"prompt": ..., "response": ...}; `user` and `assistant` are older names of the two.

    Raises ManifestError, one sentence with the file and the number of the example, counted from 1.
    """
    value = read_json(path, _LIMIT_BYTES, ManifestError)
    if not isinstance(value, list):
        raise ManifestError(f"{path} holds {type(value).__name__}; expected a list of examples")
    if not value:
        raise ManifestError(f"{path} holds no example; add one or remove the file")
    return tuple(_example(item, f"{path}: example {number}") for number, item in enumerate(value, 1))


# item is whatever JSON held
def _example(item: Any, where: str) -> Example:
    if not isinstance(item, dict):
        raise ManifestError(f"{where} is {type(item).__name__}; expected an object with a prompt")
    read: dict[str, str] = {}
    for key, text in item.items():
        name = _OLDER.get(key, key)
        if name not in _KEYS:
            raise ManifestError(f"{where} has the unknown key {key!r}{nearest(key, _KEYS)}; rename or remove it")
        if name in read:
            raise ManifestError(f"{where} gives its {name} twice, as {key!r} too; remove one")
        if not isinstance(text, str):
            raise ManifestError(f"{where}: {key} is {type(text).__name__}; expected a string")
        read[name] = text
    if not read.get("prompt", "").strip():
        raise ManifestError(f"{where} has no prompt; write what a user would ask")
    return Example(**read)
