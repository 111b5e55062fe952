"""tokenizer/template.json: how a base writes a conversation down, where it does not do it as ours do.

Decides the keys of the file. What stands there in its absence, and which token ids it makes, is `text.template`'s.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ManifestError, nearest
from modularbase_core.sdk.jsonfile import read_json, shown

ROLES: Final = ("system", "user", "assistant")
_KEYS: Final = ("begin", "system", "roles", "document", "stops")
_LIMIT_BYTES: Final = 1 << 20
_LONGEST: Final = 20_000


@dataclass(frozen=True, slots=True)
class Around:
    """What stands before and after a text."""

    open: str
    close: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """How a conversation is written. In every string, names of control tokens stand for those tokens.

    begin: what a conversation begins with. system: what the system says where a conversation does not, empty for
    nothing. roles: what stands around a message; an answer follows the assistant's `open`. document: what stands
    around a text that is no conversation, in training; its `open` is one control token, which begins every piece of
    training text. stops: the control tokens, any of which ends an answer.
    """

    begin: str
    system: str
    roles: Mapping[str, Around]
    document: Around
    stops: tuple[str, ...]


def read_template(path: Path) -> ChatTemplate:
    """Read a template.json; raises ManifestError, one sentence that begins with `path`."""
    value = read_json(path, _LIMIT_BYTES, ManifestError)
    read = _object(value, _KEYS, str(path))
    roles = _object(read["roles"], ROLES, f"{path}: roles")
    stops = read["stops"]
    if not isinstance(stops, list) or not stops:
        raise ManifestError(f"{path}: stops is {shown(stops)}; expected a list of control tokens")
    return ChatTemplate(
        begin=_text(read["begin"], f"{path}: begin"),
        system=_text(read["system"], f"{path}: system"),
        roles={role: _around(item, f"{path}: roles.{role}") for role, item in roles.items()},
        document=_around(read["document"], f"{path}: document"),
        stops=tuple(_text(stop, f"{path}: stops") for stop in stops),
    )


def template_text(template: ChatTemplate) -> str:
    """Return what `read_template` reads."""
    plain = {
        "begin": template.begin,
        "system": template.system,
        "roles": {role: {"open": one.open, "close": one.close} for role, one in template.roles.items()},
        "document": {"open": template.document.open, "close": template.document.close},
        "stops": list(template.stops),
    }
    return json.dumps(plain, ensure_ascii=False, indent=2) + "\n"


def check_template(path: Path, control: Container[str]) -> None:
    """Check that the tokens named alone are among the tokenizer's `control` tokens; raises ManifestError."""
    template = read_template(path)
    for key, token in (*(("stops", stop) for stop in template.stops), ("document.open", template.document.open)):
        if token not in control:
            raise ManifestError(
                f"{path}: {key} names {shown(token)}, which is no control token of the tokenizer beside it; "
                "mark it as special there, or name one that is"
            )


# value is whatever JSON held, and so is each item
def _object(value: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is {shown(value)}; expected an object with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise ManifestError(f"{where} has the unknown key {shown(key)}{nearest(key, keys)}; rename or remove it")
    for key in keys:
        if key not in value:
            raise ManifestError(f"{where} lacks the key {key!r}; add it")
    return value


def _around(value: Any, where: str) -> Around:
    read = _object(value, ("open", "close"), where)
    return Around(_text(read["open"], f"{where}.open"), _text(read["close"], f"{where}.close"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ManifestError(f"{where} is {shown(value)}; expected a string of at most {_LONGEST} characters")
    return value
