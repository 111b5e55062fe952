"""The public texts that our packs learnt from, or a list of one's own: a catalogue in TOML, every key checked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from modularbase_core.errors import DataError, nearest
from modularbase_core.sdk.jsonfile import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE: Final = Path(__file__).with_name("sources.toml")
"""Ours."""
SCHEMES: Final = ("https", "http", "file")
_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ARCHIVE: Final = re.compile(r"/([^/]+)/archive/(?:.*/)?([^/]+\.(?:tar\.gz|zip))$")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSource:
    """A body of public text.

    what: in a few words; home: the page of those who keep it; urls: what to fetch, with sha256 of each where it is
    known. domains: the packs that learnt from it; text_mb: megabytes of text that they took, 0 where that is not
    known. files: where in an archive the texts lie; taken: what of them, and what was made of it.
    """

    name: str
    what: str
    licence: str
    urls: tuple[str, ...]
    home: str = ""
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    text_mb: float = 0.0
    files: str = ""
    taken: str = ""
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DataError(f"the source {shown(self.name)}: use lower-case letters and digits, joined by -, _ or .")
        if not self.urls:
            raise DataError(f"the source {self.name!r} has no urls; name at least one")
        for url in self.urls:
            if urlsplit(url).scheme not in SCHEMES:
                raise DataError(f"the source {self.name!r} names {shown(url)}; use one of {', '.join(SCHEMES)}")
        if self.sha256 and len(self.sha256) != len(self.urls):
            raise DataError(
                f"the source {self.name!r} has {len(self.sha256)} sha256 for {len(self.urls)} urls; "
                'give one for each, "" where it is not known'
            )
        for digest in self.sha256:
            if digest and not _DIGEST.fullmatch(digest):
                raise DataError(f"the source {self.name!r} has the sha256 {shown(digest)}; give 64 hex digits")

    def file_names(self) -> tuple[str, ...]:
        """Return what each of `urls` is called on the disk, no two alike."""
        names = [_file_name(url) or self.name for url in self.urls]
        return tuple(name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1))

    def digest_of(self, number: int) -> str:
        """Return the SHA-256 of a url's bytes, "" where it is not known."""
        return self.sha256[number] if self.sha256 else ""


def read_catalogue(path: Path = CATALOGUE) -> dict[str, PublicSource]:
    """Read the sources of a TOML file by name; raises DataError."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the catalogue {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the catalogue {path} is not TOML: {error}") from error
    tables = value.get("source")
    if set(value) != {"source"} or not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise DataError(f"the catalogue {path} holds other things than [[source]] tables; write each source as one")
    found: dict[str, PublicSource] = {}
    for number, table in enumerate(tables, 1):
        source = _source(table, f"{path}: source {number}")
        if source.name in found:
            raise DataError(f"{path}: two sources are called {source.name!r}; rename one")
        found[source.name] = source
    return found


def choose(catalogue: Mapping[str, PublicSource], names: Sequence[str]) -> list[PublicSource]:
    """Return the sources of these names, each once; raises DataError naming the nearest for one that is not there."""
    for name in names:
        if name not in catalogue:
            raise DataError(
                f"no source {name!r} is listed{nearest(name, catalogue)}; `modularbase data list` shows all"
            )
    return [catalogue[name] for name in dict.fromkeys(names)]


def _source(table: Mapping[str, Any], where: str) -> PublicSource:  # Any: what TOML gives
    known = {item.name: item for item in fields(PublicSource)}
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise DataError(f"{where} has the unknown key {key!r}{nearest(key, known)}")
        expected, fits = _FORMS[str(known[key].type)]
        if not fits(value):
            raise DataError(f"{where}: {key} is {shown(value)}; expected {expected}")
        given[key] = tuple(value) if isinstance(value, list) else value
    for name, item in known.items():
        if name not in table and item.default is MISSING:
            raise DataError(f"{where} lacks {name!r}")
    return PublicSource(**given)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_FORMS: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "str": ("a string", _is_text),
    "float": ("a number", _is_number),
    "tuple[str, ...]": ("a list of strings", _is_texts),
}
"""What a field's annotation asks of TOML: in words, and as a test."""


def _file_name(url: str) -> str:
    """Return the last part of an address; of an archive made on demand, what it is of and the commit."""
    path = urlsplit(url).path
    found = _ARCHIVE.search(path)
    name = f"{found[1]}-{found[2]}" if found else path.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")
