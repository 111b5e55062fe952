"""The values of a manifest's keys, read one by one: their types and spelling.

What they mean together is checked in `manifest`. `manifest.schema.json` says the same, pattern for pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from modularbase_core.errors import ArchitectureError, ManifestError, nearest
from modularbase_core.sdk.architecture import Architecture, architecture_from_dict
from modularbase_core.sdk.jsonfile import shown

_RELEASE: Final = r"[0-9]{1,9}(\.[0-9]{1,9})*"
_PRE: Final = r"((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?"
_VERSION: Final = _RELEASE + _PRE + r"(\.dev[0-9]{1,9})?"
_CLAUSE: Final = (
    rf"(((<|<=|>|>=|==|!=) ?{_VERSION})|((==|!=) ?{_RELEASE}\.\*)|(~= ?[0-9]{{1,9}}(\.[0-9]{{1,9}})+{_PRE}))"
)

ID: Final = r"^[a-z0-9]+([_-][a-z0-9]+)*$"
TEXT: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"
PROSE: Final = r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$"
VERSION: Final = f"^{_VERSION}$"
SPECIFIER: Final = f"^({_CLAUSE}(, ?{_CLAUSE})*)?$"
BASE_VERSION: Final = f"^({_RELEASE}|{_CLAUSE}(, ?{_CLAUSE})*)$"
LANGUAGE: Final = r"^[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?(-[a-z0-9]{5,8})*$"
PATH: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
DIGEST: Final = r"^[0-9a-f]{64}$"
URL: Final = r"^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?([/?][!-~]*)?$"
KEY: Final = r"^[0-9a-f]{16}$"

LONGEST_WORD: Final = 100
LONGEST_NAME: Final = 200
LONGEST_PROSE: Final = 4000
LONGEST_URL: Final = 2000
MOST_LAYERS: Final = 1024
WIDEST: Final = 1 << 16
LARGEST_MB: Final = 1e9

# Any, in all of them: whatever JSON held
Reader = Callable[[Any, str], object]


def read_id(value: Any, key: str) -> str:
    """Read the id of a pack, or an alias."""
    return _spelt(value, key, ID, LONGEST_WORD, "lower-case letters and digits, joined by - or _")


def read_specifier(value: Any, key: str) -> str:
    """Read which versions are meant, empty for any."""
    return _spelt(value, key, SPECIFIER, LONGEST_NAME, "a range like >=1.1 or >=1.0,<2")


def as_specifier(wanted: str) -> str:
    """Return what an entry of base_compatibility means: of a version, all that begin with it."""
    return f"=={wanted}.*" if wanted[:1].isdigit() else wanted


def read_version(value: Any, key: str) -> str:
    """Read the version of a pack."""
    return _spelt(value, key, VERSION, LONGEST_WORD, "one like 1.0.0")


def read_digest(value: Any, key: str) -> str:
    """Read a SHA-256."""
    return _spelt(value, key, DIGEST, 64, "a SHA-256 of 64 hex digits")


def read_url(value: Any, key: str) -> str:
    """Read an address that can be downloaded from; one with a password in it is refused, for all would read it."""
    return _spelt(value, key, URL, LONGEST_URL, "an http or https address without user or password")


def texts(reader: Callable[[Any, str], str]) -> Reader:
    """Read a list of what `reader` reads."""

    def read(value: Any, key: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ManifestError(f"{key} is {shown(value)}; expected a list of strings")
        return tuple(reader(item, key) for item in value)

    return read


def by_path(reader: Callable[[Any, str], str], what: str) -> Reader:
    """Read an object of what `reader` reads, by paths inside the pack."""

    def read(value: Any, key: str) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ManifestError(f"{key} is {shown(value)}; expected an object of {what} by path")
        for path in value:
            if len(path) > LONGEST_NAME or not re.fullmatch(PATH, path) or path == "manifest.json":
                raise ManifestError(
                    f"{key} names {shown(path)}; use a path of a file inside the pack, of letters, digits, . _ - and /"
                )
        return {path: reader(item, f"{key}: {path}") for path, item in value.items()}

    return read


def read_objects(value: Any, key: str) -> list[dict[str, str]]:
    """Read the objects that `dependencies` lists: an id, and maybe a version."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ManifestError(f"{key} is {shown(value)}; expected a list of objects with id and version")
    for item in value:
        for name in item:
            if name not in ("id", "version"):
                raise ManifestError(
                    f"{key} has the unknown key {shown(name)}{nearest(name, ('id', 'version'))}; remove it"
                )
        if "id" not in item:
            raise ManifestError(f"{key} has an entry without id; add it")
    return [
        {
            "id": read_id(item["id"], f"{key}.id"),
            "version": read_specifier(item.get("version", ""), f"{key}.version of {item['id']!r}"),
        }
        for item in value
    ]


def _architecture(value: Any, key: str) -> Architecture:
    if not isinstance(value, dict):
        raise ManifestError(f"{key} is {shown(value)}; expected an object with a kind")
    try:
        return architecture_from_dict(value)
    except ArchitectureError as error:
        raise ManifestError(str(error)) from error


def _base(value: Any, key: str) -> str | None:
    return None if value is None else read_id(value, key)


def _base_version(value: Any, key: str) -> str:
    return _spelt(value, key, BASE_VERSION, LONGEST_NAME, "a version like 1.0 or a range like >=1.0,<2")


def _language(value: Any, key: str) -> str:
    return _spelt(value, key, LANGUAGE, LONGEST_WORD, "a code like en, zh-Hans or pt-BR")


def _architecture_key(value: Any, key: str) -> str:
    return _spelt(value, key, KEY, 16, "16 hex digits")


def _name(value: Any, key: str) -> str:
    return _spelt(value, key, TEXT, LONGEST_NAME, f"at most {LONGEST_NAME} characters, none of them control characters")


def _prose(value: Any, key: str) -> str:
    allowed = f"at most {LONGEST_PROSE} characters, none of them control characters but tabs and line ends"
    return _spelt(value, key, PROSE, LONGEST_PROSE, allowed)


def _schema(value: Any, key: str) -> int:
    if type(value) is not int:
        raise ManifestError(f"{key} is {shown(value)}; expected 1")
    return value


def _size(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST_MB:
        raise ManifestError(f"{key} is {shown(value)}; expected a number that is not negative")
    return value


def _layers(value: Any, key: str) -> int:
    return _count(value, key, MOST_LAYERS)


def _width(value: Any, key: str) -> int:
    return _count(value, key, WIDEST)


def _count(value: Any, key: str, most: int) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ManifestError(f"{key} is {shown(value)}; expected a whole number from 1 to {most}")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{key} is {shown(value)}; expected a string")
    return value


def _spelt(value: Any, key: str, pattern: str, longest: int, allowed: str) -> str:
    text = _text(value, key)
    if len(text) > longest or not re.fullmatch(pattern, text):
        raise ManifestError(f"{key} is {shown(text)}; use {allowed}")
    return text


READERS: Final[Mapping[str, Reader]] = {
    "schema": _schema,
    "id": read_id,
    "name": _name,
    "version": read_version,
    "type": _text,
    "base": _base,
    "base_compatibility": texts(_base_version),
    "architecture": _architecture,
    "architecture_key": _architecture_key,
    "layers": _layers,
    "hidden_size": _width,
    "aliases": texts(read_id),
    "languages": texts(_language),
    "keywords": texts(_name),
    "dependencies": read_objects,
    "fallback": texts(read_id),
    "licence": _name,
    "size_mb": _size,
    "files": by_path(read_digest, "SHA-256"),
    "downloads": by_path(read_url, "addresses"),
    "description": _prose,
}
