"""The installed packs: which plugins offer them, listed with whatever is broken and why.

Reads manifests alone, no weights. Of several versions of one pack the newest is listed, the others beside it.
Whether packs fit together is decided in `resolve`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import pluggy
from importlib_metadata import EntryPoint, entry_points
from packaging.version import Version

from modularbase_core.errors import ModularBaseError, PackError, nearest
from modularbase_core.packs.limits import admitted
from modularbase_core.packs.plugins import BrokenPlugin, LoadedPlugin, Plugins, plugin_manager
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack

__all__ = [
    "BrokenPlugin",
    "Catalog",
    "InstalledPack",
    "LoadedPlugin",
    "ShadowedPack",
    "discover",
    "newest_first",
    "plugin_manager",
    "weights_store",
]


@dataclass(frozen=True, slots=True)
class InstalledPack:
    """A pack with its manifest and the distribution that brought it."""

    pack: Pack
    manifest: Manifest
    distribution: str

    @property
    def id(self) -> str:
        """The manifest's id."""
        return self.manifest.id

    @property
    def version(self) -> Version:
        """The manifest's version, to compare."""
        return Version(self.manifest.version)

    @property
    def absent(self) -> tuple[str, ...]:
        """The files that are yet to be downloaded."""
        return tuple(name for name in self.manifest.downloads if not self.pack.path(name).is_file())


@dataclass(frozen=True, slots=True)
class ShadowedPack:
    """A sound pack that another of the same id is taken for, and why."""

    installed: InstalledPack
    reason: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is installed, in order of distribution and entry point.

    packs: one of each id, the newest. shadowed: the others. plugins: those that were loaded, none of the broken.
    only: the names that plugins were limited to, None when they were not.
    """

    packs: tuple[InstalledPack, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    shadowed: tuple[ShadowedPack, ...] = ()
    plugins: tuple[LoadedPlugin, ...] = ()
    only: tuple[str, ...] | None = None

    @property
    def limits(self) -> str:
        """Say what keeps plugins from being loaded and how to change it; empty when nothing does."""
        if self.only is None:
            return ""
        if not self.only:
            return "plugins are switched off; run without --no-plugins"
        return f"plugins are limited to {', '.join(self.only)}; name more in --plugins or MODULARBASE_PLUGINS"

    def find(self, word: str) -> InstalledPack:
        """Return the pack with this id, or else this alias; of several versions the newest.

        Raises PackError with the reason when it is broken, naming the nearest word when there is none, and the ids
        when an alias is shared.
        """
        for one in self.packs:
            if one.id == word:
                return one
        aliased = [one for one in self.packs if word in one.manifest.aliases]
        if len(aliased) > 1:
            ids = ", ".join(one.id for one in aliased)
            raise PackError(f"{word!r} is an alias of several packs ({ids}); use an id")
        if aliased:
            return aliased[0]
        for broken in self.broken:
            if broken.is_called(word):
                raise PackError(f"pack {word!r} is installed but broken: {broken.reason}")
        if self.limits:
            raise PackError(f"no pack {word!r} is loaded: {self.limits}")
        known = [name for one in self.packs for name in (one.id, *one.manifest.aliases)]
        raise PackError(f"no pack {word!r} is installed{nearest(word, known)}; `modularbase pack list` shows what is")

    def versions(self, pack_id: str) -> tuple[InstalledPack, ...]:
        """Return every installed pack of this id, the newest first."""
        every = [*self.packs, *(one.installed for one in self.shadowed)]
        return tuple(newest_first(one for one in every if one.id == pack_id))

    def of_type(self, *types: str) -> tuple[InstalledPack, ...]:
        """Return the packs of these types."""
        return tuple(one for one in self.packs if one.manifest.type in types)


def weights_store(cache_dir: Path) -> Path:
    """Return the folder in which downloaded weights lie, each file under its SHA-256."""
    return cache_dir / "weights"


def discover(
    manager: pluggy.PluginManager | None = None,
    found: Iterable[EntryPoint] | None = None,
    *,
    only: Sequence[str] | None = None,
    store: Path | None = None,
) -> Catalog:
    """Load the plugins that `found` (by default: what is installed) names and list their packs.

    manager: where the plugins are registered, a fresh one by default; plugins that it holds already count too.
    only: the names of entry points or distributions to load, none of the others; raises ConfigError, naming the
    nearest, on one that is not installed. store: where downloaded weights lie. What a plugin prints meanwhile goes
    to standard error.
    """
    entries = admitted(entry_points(group=PROJECT) if found is None else found, only)
    plugins = Plugins(manager or plugin_manager())
    with redirect_stdout(sys.stderr):
        plugins.load(entries)
        offered = [(one, pack, _installed(pack, one, store)) for one, packs in plugins.offers for pack in packs]
    broken = list(plugins.broken)
    installed: dict[str, list[InstalledPack]] = {}
    for plugin, pack, one in offered:
        if isinstance(one, InstalledPack):
            installed.setdefault(one.id, []).append(one)
        else:
            broken.append(BrokenPlugin(plugin.name, plugin.distribution, str(one), _name_of(pack)))
    ranked = [newest_first(versions) for versions in installed.values()]
    return Catalog(
        packs=tuple(first for first, *_ in ranked),
        broken=tuple(broken),
        shadowed=tuple(ShadowedPack(other, _shadow(other, first)) for first, *others in ranked for other in others),
        plugins=tuple(plugins.loaded),
        only=None if only is None else tuple(only),
    )


def newest_first(packs: Iterable[InstalledPack]) -> list[InstalledPack]:
    """Sort by version, the newest first, and packs of one version by distribution and folder."""
    by_place = sorted(packs, key=lambda one: (one.distribution, str(one.pack.directory)))
    return sorted(by_place, key=lambda one: one.version, reverse=True)


def _installed(pack: Pack, plugin: LoadedPlugin, store: Path | None) -> InstalledPack | ModularBaseError:
    """Take a pack whose files are there, or can be downloaded; else return what is wrong with it."""
    try:
        if store is not None and pack.store is None:
            pack = replace(pack, store=store)
        manifest = pack.manifest
        for file in manifest.files:
            if file not in manifest.downloads and not (pack.directory / file).is_file():
                again = plugin.distribution or manifest.id
                raise PackError(f"{pack.directory / file} is missing; install {again} again")
    except ModularBaseError as error:
        return error
    return InstalledPack(pack, manifest, plugin.distribution)


def _shadow(other: InstalledPack, first: InstalledPack) -> str:
    source = first.distribution or "another plugin"
    if other.version == first.version:
        return f"{source} offers the same version {first.manifest.version} of {first.id!r}; uninstall one of the two"
    return f"{source} offers {first.id!r} {first.manifest.version}, which is newer than {other.manifest.version}"


def _name_of(pack: Pack) -> str:
    try:
        return pack.manifest.id
    except ModularBaseError:
        return pack.directory.name
