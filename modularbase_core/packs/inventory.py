"""What is installed, indexed once: every version of each id, and what to say of a pack that is needed and not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from packaging.specifiers import SpecifierSet

from modularbase_core.errors import nearest
from modularbase_core.packs.catalog import Catalog, InstalledPack, newest_first
from modularbase_core.packs.limits import plain
from modularbase_core.sdk.manifest import Dependency

MOST_GUESSES: Final = 8
"""Ids for which the nearest is looked up; each takes 3 ms among 500 packs."""

Fault = tuple[str, str]
"""What is wrong with a need, to follow it in a sentence, and what to do about it."""


class Inventory:
    """The packs of a catalog by id, alias and name. base_id: the base in use."""

    def __init__(self, catalog: Catalog, base_id: str = "") -> None:
        self._catalog, self._base_id = catalog, base_id
        self._guesses: dict[str, str] = {}
        self.versions: dict[str, list[InstalledPack]] = {}
        for one in (*catalog.packs, *(other.installed for other in catalog.shadowed)):
            self.versions.setdefault(one.id, []).append(one)
        for pack_id, versions in self.versions.items():
            if len(versions) > 1:
                self.versions[pack_id] = newest_first(versions)
        self._aliased: dict[str, list[str]] = {}
        for one in catalog.packs:
            for alias in one.manifest.aliases:
                self._aliased.setdefault(alias, []).append(one.id)
        self._broken: dict[str, str] = {}
        for broken in catalog.broken:
            for name in (broken.pack,) if broken.pack else (broken.name, broken.distribution):
                self._broken.setdefault(plain(name), broken.reason)

    def missing(self, needed: str, by: str) -> Fault:
        """Say why there is no pack `needed`, which the pack `by` needs."""
        if needed in self.versions:  # all that is installed and in use was looked at before
            advice = f"name {needed} as `base` in the settings, or uninstall {by}"
            return f"which is a base, but {self._base_id} is the one in use", advice
        if (reason := self._broken.get(plain(needed))) is not None:
            return "which is installed but broken", reason
        if aliased := self._aliased.get(needed):
            ids = " and of ".join(sorted(aliased))
            return (
                f"which is an alias of {ids}, but packs are needed by their id",
                f"correct it in the manifest of {by}",
            )
        if self._catalog.limits:
            return "which is not loaded", self._catalog.limits
        return f"which is not installed{self._guess(needed)}", f"install {needed}"

    def unsuited(self, needed: Dependency, used: str, by: str) -> Fault:
        """Say that the version `used` of a pack is not one that the pack `by` needs."""
        wanted = SpecifierSet(needed.version)
        for other in self.versions.get(needed.id, ()):
            if wanted.contains(other.version, prereleases=True):
                version = other.manifest.version
                return f"but {used} is used", f"{version} is installed too, so uninstall {needed.id} {used}"
        return f"but {used} is installed", f"install another version of {needed.id} or of {by}"

    def _guess(self, word: str) -> str:
        if word not in self._guesses and len(self._guesses) < MOST_GUESSES:
            known: Mapping[str, object] = {**self.versions, **self._aliased}
            self._guesses[word] = nearest(word, known)
        return self._guesses.get(word, "")
