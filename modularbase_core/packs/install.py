"""From what the user names to what pip installs: which distribution is meant, and whether its wheel may come in.

Every wheel is looked into before pip installs it, and then exactly that wheel is installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from importlib_metadata import PackageNotFoundError, version
from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from modularbase_core.errors import PackError, PackIncompatible
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.limits import plain
from modularbase_core.packs.pip import NotOffered, Pip, Sources
from modularbase_core.packs.resolve import check_compatible, choose_base
from modularbase_core.packs.wheels import Wheel, look_into
from modularbase_core.sdk.manifest import MANIFEST_FILE, Manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX: Final = "modularbase-pack-"
OURS: Final = "modularbase-"
_ADDRESS: Final = re.compile(r"(git|hg|svn|bzr)\+\w+://|https?://|file://")


@dataclass(frozen=True, slots=True)
class Target:
    """What the user asked for.

    names: distributions to try in turn, empty when `place` says where it is: a path or an address. word: the pack
    that it must offer, where the name was guessed.
    """

    given: str
    names: tuple[str, ...] = ()
    wanted: str = ""
    extras: frozenset[str] = frozenset()
    place: str = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A sound wheel that is about to be installed. direct: what pip records as its source, None for an index."""

    target: Target
    wheel: Wheel
    direct: str | None


def read_target(text: str, catalog: Catalog) -> Target:
    """Understand NAME, NAME@1.0, NAME==1.0, a wheel, a project folder or an address; raises PackError."""
    name, at, wanted = text.partition("@")
    if _ADDRESS.match(text):
        return Target(text, place=text)
    if at and _ADDRESS.match(wanted.strip()):
        return Target(text, place=wanted.strip())
    if "\0" in text:
        raise PackError(f"{text!r} names no pack; write NAME, NAME@1.0.0, NAME>=1.0, a path or an address")
    path = Path(text).expanduser()
    if text.endswith((".whl", ".tar.gz", ".zip")) or "/" in text or text in (".", ".."):
        return Target(text, place=str(_local(path, text)))
    if at:
        try:
            text = f"{name.strip()}=={Version(wanted)}"
        except InvalidVersion as error:
            raise PackError(f"{wanted!r} in {text!r} is no version; write one like {name}@1.0.0") from error
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise PackError(f"{text!r} names no pack; write NAME, NAME@1.0.0, NAME>=1.0, a path or an address") from error
    names, word = _names(requirement.name, catalog)
    return Target(text, names, str(requirement.specifier), frozenset(requirement.extras), word=word)


def _local(path: Path, text: str) -> Path:
    if not path.exists():
        raise PackError(f"{text} does not exist; name a wheel, a project folder, or a pack without a /")
    if path.is_dir() and not any((path / name).is_file() for name in ("pyproject.toml", "setup.py")):
        kind = "a pack's data" if (path / MANIFEST_FILE).is_file() else "no project"
        raise PackError(f"{text} is {kind}, not a distribution; name the folder that holds its pyproject.toml")
    return path.absolute()


def _names(name: str, catalog: Catalog) -> tuple[tuple[str, ...], str]:
    """List the distributions that may be meant, and the pack that a guessed one must offer."""
    if canonicalize_name(name).startswith(OURS):
        return (canonicalize_name(name),), ""
    guesses = [PREFIX + canonicalize_name(name)]
    rest, joint, _ = canonicalize_name(name).rpartition("-")
    if joint:
        guesses.append(PREFIX + rest)
    known = [one.distribution for one in catalog.packs if _is_called(one.manifest, name) and one.distribution]
    return tuple(dict.fromkeys([*map(canonicalize_name, known), *guesses])), name


def _is_called(manifest: Manifest, word: str) -> bool:
    return plain(word) in [plain(one) for one in (manifest.id, *manifest.aliases)]


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def already(target: Target, catalog: Catalog) -> str | None:
    """Return the installed distribution that is all that the target asks for; None when there is more to do.

    One that is broken is not: it is to be installed again.
    """
    broken = {canonicalize_name(one.distribution) for one in catalog.broken if one.distribution}
    for name in target.names:
        found = installed_version(name)
        offered = [one.manifest for one in catalog.packs if canonicalize_name(one.distribution or "-") == name]
        meant = _is_meant(target, name, offered)
        if found and meant and name not in broken and SpecifierSet(target.wanted).contains(found, prereleases=True):
            return name
    return None


def _is_meant(target: Target, name: str, offered: Iterable[Manifest]) -> bool:
    """Whether `name` is the word itself, or a guess that offers the pack of that word."""
    exact = not target.word or name == PREFIX + canonicalize_name(target.word)
    return exact or any(_is_called(one, target.word) for one in offered)


def find(target: Target, pip: Pip, sources: Sources, folder: Path, *options: str) -> Found:
    """Get the target's wheel into `folder` and look into it; nothing is installed.

    options: further ones for `pip wheel`. Raises PackError, PipError, ManifestError or WeightsError.
    """
    if target.place:
        return _from_place(target, pip, sources, folder, options)
    unreachable: NotOffered | None = None
    for name in target.names:
        place = folder / name
        quickly = ("--retries", "0") if unreachable else ()  # it was waited for once
        try:
            path = pip.wheel(f"{name}{target.wanted}", place, sources, *quickly, *options)
        except NotOffered as error:
            unreachable = error if error.unreachable else unreachable
            continue
        wheel = look_into(path, folder / f"{name}-unpacked")
        if _is_meant(target, name, wheel.packs):
            return Found(target, wheel, None)
    if unreachable is not None:
        raise unreachable
    raise PackError(
        f"no pack {target.given!r} is offered (looked for {' and '.join(target.names)}); check the name and the index, "
        "or give a wheel, a path or an address"
    )


def _from_place(target: Target, pip: Pip, sources: Sources, folder: Path, options: Sequence[str]) -> Found:
    if target.place.endswith(".whl") and not _ADDRESS.match(target.place):
        path = Path(target.place)
        return Found(target, look_into(path, folder / f"{path.name}-unpacked"), str(path))
    place = folder / f"built-{len(list(folder.iterdir()))}"
    path = pip.wheel(target.place, place, sources, *isolation(Path(target.place)), *options)
    wheel = look_into(path, folder / f"{place.name}-unpacked")
    address = urlsplit(target.place)
    if address.path.endswith(".whl") and address.scheme in ("http", "https"):
        # pip fetches it once more, and takes no other bytes than those that were looked into
        return Found(target, wheel, address._replace(fragment=f"sha256={wheel.sha256}").geturl())
    return Found(target, wheel, None)


def isolation(project: Path) -> list[str]:
    """Return pip's options to build with what is installed, where that suffices: else pip needs an index for it."""
    try:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        wanted = [Requirement(one) for one in tomllib.loads(text)["build-system"]["requires"]]
    except (ValueError, KeyError, TypeError, OSError):
        return []  # pip tells what is wrong with it
    for one in wanted:
        have = installed_version(one.name)
        if have is None or not one.specifier.contains(have, prereleases=True):
            return []
    return ["--no-build-isolation"]


def check_fit(wheels: Sequence[Wheel], catalog: Catalog, base_id: str | None) -> list[str]:
    """Raise PackIncompatible when a pack was made for another base than is, or is about to be, installed.

    Return a sentence for each that cannot be told, as no base is there yet.
    """
    bases = {one.id: one.manifest for one in catalog.of_type("base")}
    bases |= {one.id: one for wheel in wheels for one in wheel.packs if one.type == "base"}
    untold = []
    for one in [one for wheel in wheels for one in wheel.packs if one.type != "base"]:
        if not bases:
            untold.append(f"{one.id}: no base is installed yet, so whether it fits cannot be told")
            continue
        try:
            base = bases[one.base or ""] if one.base in bases else choose_base(catalog, base_id).manifest
        except PackIncompatible:
            raise
        except PackError:  # none was chosen among several: any of them tells why it does not fit
            base = next(iter(bases.values()))
        check_compatible(one, base)
    return untold


def needed(found: Sequence[Found]) -> list[str]:
    """List the dependencies that are neither installed nor among what is about to be.

    Raises PackError where one of those is of another version than is needed.
    """
    coming = {one.wheel.distribution: one.wheel.version for one in found}
    lacking: dict[str, None] = {}
    for one in found:
        for text in one.wheel.requires:
            requirement = Requirement(text)
            if not _applies(requirement, one.target.extras):
                continue
            requirement.marker = None
            name = canonicalize_name(requirement.name)
            have = coming.get(name) or installed_version(name)
            fits = have is not None and requirement.specifier.contains(have, prereleases=True)
            if name in coming and not fits:
                raise PackError(
                    f"{one.wheel.distribution} needs {requirement}, but {have} was asked for; name another version"
                )
            if not fits or ((requirement.url or requirement.extras) and name not in coming):
                lacking[str(requirement)] = None
    return list(lacking)


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    try:
        return any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""})
    except UndefinedEnvironmentName:
        return True  # pip decides


def install(found: Sequence[Found], pip: Pip, sources: Sources, *, dependencies: bool = True) -> None:
    """Install dependencies first, then exactly these wheels: what cannot be had stops it before a pack changes."""
    lacking = needed(found) if dependencies else []
    if lacking:
        pip.install(lacking, sources)
    direct = [one.direct for one in found if one.direct is not None]
    if direct:
        pip.install(direct, sources, "--no-deps", "--force-reinstall")
    named = [one.wheel for one in found if one.direct is None]
    if named:
        # by name, so that pip records no path that is gone tomorrow
        here = Sources(find_links=tuple(sorted({str(wheel.path.parent) for wheel in named})), pre=True)
        exact = [f"{wheel.distribution}=={wheel.version}" for wheel in named]
        pip.install(exact, here, "--no-deps", "--no-index", "--force-reinstall")
