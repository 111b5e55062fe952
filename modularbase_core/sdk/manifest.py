"""manifest.json: what a pack says about itself, and what is refused.

Reads and writes the file; whether its claims hold (digests, shapes) is `sdk.testing`'s and the loader's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from modularbase_core.errors import ArchitectureError, ManifestError, nearest
from modularbase_core.sdk.architecture import Architecture, architecture_from_dict, architecture_to_dict
from modularbase_core.sdk.files import file_sha256, write_atomically

MANIFEST_FILE: Final = "manifest.json"
WEIGHTS_FILE: Final = "model.safetensors"
ROUTING_FILE: Final = "routing.safetensors"
TOKENIZER_FILE: Final = "tokenizer/tokenizer.json"
EXAMPLES_FILE: Final = "examples.json"
DATA_FILES: Final = (WEIGHTS_FILE, ROUTING_FILE, TOKENIZER_FILE, EXAMPLES_FILE)

SCHEMA: Final = 1
KIND_OF_TYPE: Final = {"base": "base", "router": "router", "system": "pack", "domain": "pack"}
"""Pack type to the kind of its architecture."""

_ID: Final = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another pack that must be there; `version` is a specifier such as `>=1.1`, empty for any."""

    id: str
    version: str = ""

    def __post_init__(self) -> None:
        _check_id(self.id, "dependency id")
        _specifier(self.version, f"dependency {self.id!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A pack's description; see the field names in `manifest.json`.

    type: base, router, system (resident, like general chat) or domain. base: id of the base that it was trained
    with, None for a base itself. base_compatibility: versions of that base, as prefixes (`1.0`) or specifiers
    (`>=1.0,<2`); any one suffices. files: SHA-256 by path inside the pack.
    """

    id: str
    name: str = ""
    version: str
    type: str = "domain"
    architecture: Architecture | None = None
    architecture_key: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    base: str | None = None
    base_compatibility: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    fallback: tuple[str, ...] = ()
    licence: str = ""
    size_mb: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    downloads: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ManifestError(f"schema is {self.schema}, this version reads {SCHEMA}; upgrade modularbase")
        for word in (self.id, *self.aliases):
            _check_id(word, "id or alias")
        if not self.name:
            object.__setattr__(self, "name", self.id)
        _version(self.version)
        if self.type not in KIND_OF_TYPE:
            raise ManifestError(f"type is {self.type!r}; use one of {', '.join(KIND_OF_TYPE)}")
        if self.architecture is not None and self.architecture.kind != KIND_OF_TYPE[self.type]:
            raise ManifestError(
                f"architecture.kind is {self.architecture.kind!r}, but type {self.type!r} needs "
                f"{KIND_OF_TYPE[self.type]!r}; correct one of them"
            )
        if self.base is not None and self.type == "base":
            raise ManifestError(f"base is {self.base!r}, but a base has no base; correct base or type")
        for wanted in self.base_compatibility:
            _specifier(_as_specifier(wanted), "base_compatibility")
        for name, digest in self.files.items():
            _check_file(name, digest)

    @property
    def network(self) -> Architecture:
        """The architecture; raises ManifestError when the manifest describes no network."""
        if self.architecture is None:
            raise ManifestError(
                f"pack {self.id!r} describes no network, so it cannot run; add its architecture to its manifest"
            )
        return self.architecture

    def admits_base(self, version: str) -> bool:
        """Tell whether this pack was made for `version` of its base; no base_compatibility means any."""
        specifiers = [SpecifierSet(_as_specifier(wanted), prereleases=True) for wanted in self.base_compatibility]
        return not specifiers or any(Version(version) in specifier for specifier in specifiers)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.json; raises ManifestError, one sentence that begins with `path`."""
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ManifestError(f"{path} is missing; install the pack again") from error
        except OSError as error:
            raise ManifestError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path} is not JSON ({error}); correct it or install the pack again") from error
        try:
            return cls.from_dict(value)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Read what `to_dict` wrote; raises ManifestError on an unknown or missing key and a wrong value."""
        if not isinstance(value, dict):
            raise ManifestError(f"a manifest is a JSON object, not {type(value).__name__}; write one with id and type")
        known = {item.name for item in fields(cls)}
        for key in value:
            if key not in known:
                raise ManifestError(f"unknown key {key!r}{nearest(key, known)}; rename or remove it")
        for key in ("id", "version"):
            if key not in value:
                raise ManifestError(f"lacks the key {key!r}; add it")
        # Any, because each reader has its own type
        read: dict[str, Any] = {key: _READERS[key](item, key) for key, item in value.items()}
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Describe the manifest as plain JSON values, in the order in which people read it."""
        plain: dict[str, Any] = {"schema": self.schema}
        for key in (item.name for item in fields(self)):
            value = getattr(self, key)
            plain[key] = list(value) if isinstance(value, tuple) else value
        for key in ("architecture", "architecture_key", "layers", "hidden_size", "base"):
            if plain[key] is None:
                del plain[key]
        if self.architecture is not None:
            plain["architecture"] = architecture_to_dict(self.architecture)
        plain["dependencies"] = [{"id": item.id, "version": item.version} for item in self.dependencies]
        plain["files"] = dict(self.files)
        plain["downloads"] = dict(self.downloads)
        return plain


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write `directory`/manifest.json with the digests and size of the data files there; return it as written."""
    present = [name for name in DATA_FILES if (directory / name).is_file()]
    size_bytes = sum((directory / name).stat().st_size for name in present)
    whole = replace(
        manifest,
        files={name: file_sha256(directory / name) for name in present},
        size_mb=round(size_bytes / 1e6, 3),
    )
    text = json.dumps(whole.to_dict(), ensure_ascii=False, indent=2) + "\n"
    write_atomically(directory / MANIFEST_FILE, [text.encode()])
    return whole


def _check_id(word: str, what: str) -> None:
    if not _ID.fullmatch(word):
        raise ManifestError(f"{what} is {word!r}; use lower-case letters and digits, joined by - or _")


def _check_file(name: str, digest: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name or name in ("", "."):
        raise ManifestError(f"files names {name!r}; use a path inside the pack, with /")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ManifestError(f"files gives {digest!r} for {name!r}; expected a SHA-256 of 64 hex digits")


def _version(text: str) -> None:
    try:
        Version(text)
    except InvalidVersion as error:
        raise ManifestError(f"version is {text!r}; use one like 1.0.0") from error


def _specifier(text: str, what: str) -> None:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ManifestError(f"{what} has the version {text!r}; use one like 1.0 or >=1.0,<2") from error


def _as_specifier(wanted: str) -> str:
    return f"=={wanted}.*" if wanted[:1].isdigit() else wanted


# what the readers take is whatever JSON held
def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{key} is {value!r}; expected a string")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ManifestError(f"{key} is {value!r}; expected a list of strings")
    return tuple(_text(item, key) for item in value)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ManifestError(f"{key} is {value!r}; expected a number that is not negative")
    return value


def _count(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ManifestError(f"{key} is {value!r}; expected a positive whole number")
    return value


def _schema(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ManifestError(f"{key} is {value!r}; expected {SCHEMA}")
    return value


def _base(value: Any, key: str) -> str | None:
    return None if value is None else _text(value, key)


def _architecture(value: Any, key: str) -> Architecture:
    if not isinstance(value, dict):
        raise ManifestError(f"{key} is {value!r}; expected an object with a kind")
    try:
        return architecture_from_dict(value)
    except ArchitectureError as error:
        raise ManifestError(str(error)) from error


def _dependencies(value: Any, key: str) -> tuple[Dependency, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ManifestError(f"{key} is {value!r}; expected a list of objects with id and version")
    for item in value:
        for name in item:
            if name not in ("id", "version"):
                raise ManifestError(f"{key} has the unknown key {name!r}{nearest(name, ('id', 'version'))}; remove it")
        if "id" not in item:
            raise ManifestError(f"{key} has an entry without id; add it")
    return tuple(Dependency(**{name: _text(text, f"{key}.{name}") for name, text in item.items()}) for item in value)


def _files(value: Any, key: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ManifestError(f"{key} is {value!r}; expected an object of SHA-256 by path")
    return {name: _text(digest, key) for name, digest in value.items()}


_READERS: Final[Mapping[str, Callable[[Any, str], object]]] = {
    "schema": _schema,
    "id": _text,
    "name": _text,
    "version": _text,
    "type": _text,
    "architecture": _architecture,
    "architecture_key": _text,
    "layers": _count,
    "hidden_size": _count,
    "base": _base,
    "base_compatibility": _texts,
    "aliases": _texts,
    "languages": _texts,
    "keywords": _texts,
    "dependencies": _dependencies,
    "fallback": _texts,
    "licence": _text,
    "size_mb": _number,
    "files": _files,
    "downloads": _files,
    "description": _text,
}
