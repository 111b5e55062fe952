"""manifest.json: what a pack says about itself, and what is refused.

Reads and writes the file, and decides what its keys mean together; `readers` decides how each is spelt. Whether its
claims hold (digests, shapes) is `sdk.testing`'s and the loader's. `manifest.schema.json` says the same to others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from modularbase_core.errors import ManifestError, nearest
from modularbase_core.sdk.architecture import (
    Architecture,
    architecture_key,
    architecture_to_dict,
    hidden_width,
    layer_count,
)
from modularbase_core.sdk.files import file_sha256, write_atomically
from modularbase_core.sdk.jsonfile import read_json, shown
from modularbase_core.sdk.readers import READERS, as_specifier

MANIFEST_FILE: Final = "manifest.json"
WEIGHTS_FILE: Final = "model.safetensors"
ROUTING_FILE: Final = "routing.safetensors"
TOKENIZER_FILE: Final = "tokenizer/tokenizer.json"
TEMPLATE_FILE: Final = "tokenizer/template.json"
EXAMPLES_FILE: Final = "examples.json"
DATA_FILES: Final = (WEIGHTS_FILE, ROUTING_FILE, TOKENIZER_FILE, TEMPLATE_FILE, EXAMPLES_FILE)

SCHEMA: Final = 1
KIND_OF_TYPE: Final = {"base": "base", "router": "router", "system": "pack", "domain": "pack"}
"""Pack type to the kind of its architecture."""

_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another pack that must be there; `version` is a specifier such as `>=1.1`, empty for any."""

    id: str
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A pack's description; see the field names in `manifest.json`. Raises ManifestError on what a file may not say.

    name: the id where it is empty. type: base, router, system (resident, like general chat) or domain. base: id of
    the base that it was trained with; None for a base itself, and for a pack that takes any base whose version and
    shapes fit. base_compatibility: versions of the base, as prefixes (`1.0`) or specifiers (`>=1.0,<2`); any one
    suffices. fallback: ids of packs that may answer in its place, the best first. architecture: None where only a
    description is given. architecture_key, layers, hidden_size: of the architecture, for those who only list packs.
    files: SHA-256 by path inside the pack. downloads: where to fetch those of them that the pack comes without.
    """

    id: str
    name: str = ""
    version: str
    type: str = "domain"
    description: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    base: str | None = None
    base_compatibility: tuple[str, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    fallback: tuple[str, ...] = ()
    size_mb: float = 0.0
    layers: int | None = None
    hidden_size: int | None = None
    architecture_key: str | None = None
    architecture: Architecture | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    downloads: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.id)
        for key, value in self.to_dict().items():
            READERS[key](value, key)
        if self.schema != SCHEMA:
            raise ManifestError(f"schema is {self.schema}, this version reads {SCHEMA}; upgrade modularbase")
        if self.type not in KIND_OF_TYPE:
            raise ManifestError(f"type is {shown(self.type)}; use one of {', '.join(KIND_OF_TYPE)}")
        if self.base is not None and self.type == "base":
            raise ManifestError(f"base is {self.base!r}, but a base has no base; correct base or type")
        self._check_packs()
        self._check_files()
        self._check_architecture()

    def _check_packs(self) -> None:
        for key, named in (("dependencies", [one.id for one in self.dependencies]), ("fallback", self.fallback)):
            if self.id in named:
                raise ManifestError(f"{key} names {self.id!r}, the pack itself; remove it")

    def _check_files(self) -> None:
        for name in self.files:
            if name.startswith("tokenizer/") and self.type != "base":
                raise ManifestError(
                    f"files names {name!r}, but pack tokens are not supported by this version; only a base brings a "
                    "tokenizer, remove it"
                )
        # a manifest still to be written lists no files yet
        for name in self.downloads if self.files else ():
            if name not in self.files:
                raise ManifestError(
                    f"downloads names {name!r}, which files does not; give its SHA-256 there{nearest(name, self.files)}"
                )

    def _check_architecture(self) -> None:
        if self.architecture is None:
            return
        if self.architecture.kind != KIND_OF_TYPE[self.type]:
            raise ManifestError(
                f"architecture.kind is {self.architecture.kind!r}, but type {self.type!r} needs "
                f"{KIND_OF_TYPE[self.type]!r}; correct one of them"
            )
        for key, of_it in _facts(self.architecture).items():
            given = getattr(self, key)
            if given not in (None, of_it):
                what = f"its architecture has {of_it!r}" if of_it is not None else "a router has none"
                raise ManifestError(f"{key} is {given!r}, but {what}; write the manifest again")

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
        specifiers = [SpecifierSet(as_specifier(wanted), prereleases=True) for wanted in self.base_compatibility]
        return not specifiers or any(Version(version) in specifier for specifier in specifiers)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.json; raises ManifestError, one sentence that begins with `path`."""
        value = read_json(path, _LIMIT_BYTES, ManifestError)
        try:
            return cls.from_dict(value)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Read what `to_dict` wrote; raises ManifestError on an unknown or missing key and a wrong value."""
        if not isinstance(value, dict):
            raise ManifestError(
                f"a manifest is a JSON object, not {type(value).__name__}; write one with id and version"
            )
        for key in value:
            if key not in READERS:
                raise ManifestError(f"unknown key {shown(key)}{nearest(key, READERS)}; rename or remove it")
        for key in ("id", "version"):
            if key not in value:
                raise ManifestError(f"lacks the key {key!r}; add it")
        # Any, because each reader has its own type
        read: dict[str, Any] = {key: READERS[key](item, key) for key, item in value.items()}
        if "dependencies" in read:
            read["dependencies"] = tuple(Dependency(**item) for item in read["dependencies"])
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Describe the manifest as plain JSON values, in the order in which people read it."""
        plain: dict[str, Any] = {"schema": self.schema}
        for key in (item.name for item in fields(self)):
            value = getattr(self, key)
            if value is not None:
                plain[key] = list(value) if isinstance(value, tuple) else value
        plain["dependencies"] = [{"id": item.id, "version": item.version} for item in self.dependencies]
        if self.architecture is not None:
            plain["architecture"] = architecture_to_dict(self.architecture)
        plain["files"], plain["downloads"] = dict(self.files), dict(self.downloads)
        return plain


def weights_name(base: Manifest, router: Manifest) -> str:
    """Name the weights that a message's query depends on, by their digests; routing keys say what made them."""
    return "-".join(one.files.get(WEIGHTS_FILE, "")[:16] for one in (base, router))


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write `directory`/manifest.json with the digests and size of the data files there; return it as written.

    A file that is to be downloaded and not there keeps the digest that `manifest` gives it, and the size its number.
    """
    present = [name for name in DATA_FILES if (directory / name).is_file()]
    absent = {name: manifest.files[name] for name in manifest.downloads if name in manifest.files.keys() - set(present)}
    size_mb = round(sum((directory / name).stat().st_size for name in present) / 1e6, 3)
    whole = replace(
        manifest,
        files={**{name: file_sha256(directory / name) for name in present}, **absent},
        size_mb=max(size_mb, manifest.size_mb) if absent else size_mb,
        **(_facts(manifest.architecture) if manifest.architecture is not None else {}),
    )
    text = json.dumps(whole.to_dict(), ensure_ascii=False, indent=2) + "\n"
    write_atomically(directory / MANIFEST_FILE, [text.encode()])
    return whole


def _facts(architecture: Architecture) -> dict[str, Any]:  # Any: two numbers and a text
    return {
        "layers": layer_count(architecture),
        "hidden_size": hidden_width(architecture),
        "architecture_key": architecture_key(architecture),
    }
