"""modularbase-packs.lock: every installed pack with its distribution and the digest of each file, as TOML.

Decides what is written and when an installation is the same as a lock; getting there is pip's.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from importlib_metadata import PackageNotFoundError, distribution, version
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from modularbase_core.errors import PackError, nearest
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.sdk.files import file_sha256, write_atomically
from modularbase_core.sdk.manifest import MANIFEST_FILE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, order=True)
class LockedPack:
    """A pack of a distribution. files: SHA-256 by path, the manifest's own among them."""

    id: str
    version: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, order=True)
class Locked:
    """A distribution and its packs. url: where it came from, empty for an index."""

    name: str
    version: str
    packs: tuple[LockedPack, ...]
    url: str = ""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name} @ {self.url}" if self.url else f"{self.name}=={self.version}"


def lock(catalog: Catalog) -> tuple[Locked, ...]:
    """Describe what is installed, as its files are now; raises PackError for a pack that no distribution brought."""
    by_distribution: dict[str, list[InstalledPack]] = {}
    for one in catalog.packs:
        if not one.distribution:
            raise PackError(f"pack {one.id!r} belongs to no distribution, so it cannot be locked; install it with pip")
        by_distribution.setdefault(one.distribution, []).append(one)
    return tuple(
        sorted(
            Locked(canonicalize_name(name), _version(name), tuple(sorted(map(_locked, packs))), _address(name))
            for name, packs in by_distribution.items()
        )
    )


def _locked(one: InstalledPack) -> LockedPack:
    """Take the digests of the files that are here, and the manifest's for those that are yet to be fetched."""
    files = {MANIFEST_FILE: file_sha256(one.pack.directory / MANIFEST_FILE)}
    for name, digest in one.manifest.files.items():
        path = one.pack.path(name)
        files[name] = file_sha256(path) if path.is_file() else digest
    return LockedPack(one.id, one.manifest.version, tuple(sorted(files.items())))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise PackError(f"the distribution {name!r} has no metadata; install it again") from error


def _address(name: str) -> str:
    """Return the address that pip recorded for a wheel installed from one (PEP 610), with its digest."""
    text = distribution(name).read_text("direct_url.json")
    try:
        record = json.loads(text or "{}")
        url, info = str(record.get("url", "")), record.get("archive_info", {})
    except (ValueError, AttributeError):
        return ""
    if not url.startswith(("http://", "https://")) or not isinstance(info, dict):
        return ""
    digest = str((info.get("hashes") or {}).get("sha256", ""))
    return f"{url}#sha256={digest}" if digest else url


def write_lock(path: Path, locked: Iterable[Locked]) -> None:
    """Write a lock file; raises PackError where it cannot be written."""
    lines = ["# What `modularbase pack lock` found installed; `modularbase pack restore` installs it again."]
    lines += [f"schema = {SCHEMA}"]
    for one in locked:
        lines += ["", "[[distribution]]", f"name = {_quoted(one.name)}", f"version = {_quoted(one.version)}"]
        lines += [f"url = {_quoted(one.url)}"] if one.url else []
        for pack in one.packs:
            lines += ["", "[[distribution.pack]]", f"id = {_quoted(pack.id)}", f"version = {_quoted(pack.version)}"]
            lines += ["[distribution.pack.files]"]
            lines += [f"{_quoted(name)} = {_quoted(digest)}" for name, digest in pack.files]
    try:
        write_atomically(path, ["\n".join([*lines, ""]).encode()])
    except OSError as error:
        raise PackError(f"{path} cannot be written ({error.strerror}); name another with --output") from error


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML string but for DEL


def read_lock(path: Path) -> tuple[Locked, ...]:
    """Read a lock file; raises PackError, one sentence that begins with `path`."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PackError(f"{path} does not exist; write one with `modularbase pack lock`") from error
    except OSError as error:
        raise PackError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path} is not TOML ({error}); lock again") from error
    try:
        if value.get("schema") != SCHEMA:
            raise PackError(f"schema is {value.get('schema')!r}, this version reads {SCHEMA}; upgrade modularbase")
        _check_keys(value, {"schema", "distribution"}, "the lock")
        locked = tuple(_read_distribution(item) for item in _tables(value, "distribution"))
        names = [one.name for one in locked]
        if len(set(names)) < len(names):
            raise PackError("a distribution is there twice; lock again")
        return locked
    except PackError as error:
        raise PackError(f"{path}: {error}") from error


# Any, in all of these: whatever TOML held
def _read_distribution(item: Mapping[str, Any]) -> Locked:
    _check_keys(item, {"name", "version", "url", "pack"}, "a distribution")
    name, release, url = _text(item, "name"), _text(item, "version"), _text(item, "url", "")
    # what pip is given comes from here: nothing but a name, a version and an address may pass
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise PackError(f"{name!r} is no name of a distribution; lock again")
    try:
        Version(release)
    except InvalidVersion as error:
        raise PackError(f"{name} has the version {release!r}, which is none; lock again") from error
    if url and not re.fullmatch(r"https?://\S+", url):
        raise PackError(f"{name} has the address {url!r}; only http and https are taken")
    return Locked(canonicalize_name(name), release, tuple(_read_pack(one) for one in _tables(item, "pack")), url)


def _read_pack(item: Mapping[str, Any]) -> LockedPack:
    _check_keys(item, {"id", "version", "files"}, "a pack")
    files = item.get("files")
    if not isinstance(files, dict) or not all(re.fullmatch(r"[0-9a-f]{64}", str(one)) for one in files.values()):
        raise PackError("a pack's files must be SHA-256 digests by path; lock again")
    return LockedPack(_text(item, "id"), _text(item, "version"), tuple(sorted(files.items())))


def _tables(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise PackError(f"{key} must be a list of tables; lock again")
    return found


def _text(item: Mapping[str, Any], key: str, default: str | None = None) -> str:
    text = item.get(key, default)
    if not isinstance(text, str):
        raise PackError(f"{key} is {text!r}; expected a string")
    return text


def _check_keys(item: Mapping[str, Any], known: set[str], what: str) -> None:
    for key in item:
        if key not in known:
            raise PackError(f"{what} has the unknown key {key!r}{nearest(key, known)}; upgrade modularbase")


def differences(wanted: Iterable[Locked], found: Iterable[Locked]) -> dict[str, list[str]]:
    """Tell how what is installed differs from a lock: by distribution, a sentence for each difference."""
    have = {one.name: one for one in found}
    told: dict[str, list[str]] = {}
    for one in wanted:
        lines = _differing(one, have.pop(one.name, None))
        if lines:
            told[one.name] = lines
    for name, other in have.items():
        ids = ", ".join(pack.id for pack in other.packs)
        told[name] = [f"{name} {other.version} ({ids}) is installed but not locked; remove it or lock again"]
    return told


def _differing(wanted: Locked, found: Locked | None) -> list[str]:
    if found is None:
        return [f"{wanted.name} {wanted.version} is not installed"]
    if found.version != wanted.version:
        return [f"{wanted.name} is {found.version}, locked is {wanted.version}"]
    have = {pack.id: pack for pack in found.packs}
    told = []
    for pack in wanted.packs:
        if pack.id not in have:
            told.append(f"{wanted.name} {wanted.version} offers no pack {pack.id!r} that can be used")
            continue
        files, locked = dict(have[pack.id].files), dict(pack.files)
        for name in sorted(files.keys() | locked.keys()):
            if files.get(name) != locked.get(name):
                told.append(f"{pack.id}/{name} is another file than the locked one")
    locked_ids = {pack.id for pack in wanted.packs}
    told += [f"{wanted.name} offers {id!r}, which is not locked" for id in have if id not in locked_ids]
    return told
