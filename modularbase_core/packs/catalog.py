"""The installed packs: found through entry points, listed with whatever is broken and why.

Reads manifests alone, no weights. One broken plugin never stops the rest. Whether packs fit together is
decided in `resolve`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import pluggy
from importlib_metadata import EntryPoint, entry_points

from modularbase_core.errors import ModularBaseError, PackError, nearest
from modularbase_core.sdk import hookspecs
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack


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


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin, or one pack of it, that cannot be used, and why.

    pack: the pack's id, or its folder's name where no id can be read; empty for a whole plugin.
    """

    name: str
    distribution: str
    reason: str
    pack: str = ""

    def is_called(self, word: str) -> bool:
        """Whether `word` names the plugin, its distribution or the pack; - and _ are the same, as for pip."""
        word = word.replace("-", "_").lower()
        names = (self.pack,) if self.pack else (self.name, self.distribution)
        return word in [name.replace("-", "_").lower() for name in names if name]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What is installed, in order of distribution and entry point."""

    packs: tuple[InstalledPack, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()

    def find(self, word: str) -> InstalledPack:
        """Return the pack with this id, or else this alias.

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
        known = [name for one in self.packs for name in (one.id, *one.manifest.aliases)]
        raise PackError(f"no pack {word!r} is installed{nearest(word, known)}; `modularbase pack list` shows what is")

    def of_type(self, *types: str) -> tuple[InstalledPack, ...]:
        """Return the packs of these types."""
        return tuple(one for one in self.packs if one.manifest.type in types)


def discover(manager: pluggy.PluginManager | None = None, found: Iterable[EntryPoint] | None = None) -> Catalog:
    """Load the plugins that `found` (by default: what is installed) names and list their packs.

    manager: where the plugins are registered, a fresh one by default; plugins that it holds already count too.
    What a plugin prints meanwhile goes to standard error.
    """
    with redirect_stdout(sys.stderr):
        return _discover(manager or plugin_manager(), found)


def _discover(manager: pluggy.PluginManager, found: Iterable[EntryPoint] | None) -> Catalog:
    sources, broken = _register(manager, entry_points(group=PROJECT) if found is None else found)
    packs: dict[str, InstalledPack] = {}
    for name, offered in _offers(manager, sources, broken):
        for pack in offered:
            try:
                one = _installed(pack, sources.get(name, ""))
                if one.id in packs:
                    raise PackError(
                        f"pack {one.id!r} is already offered by {packs[one.id].distribution}; uninstall one of the two"
                    )
            except ModularBaseError as error:
                broken.append(BrokenPlugin(name, sources.get(name, ""), str(error), _name_of(pack)))
            else:
                packs[one.id] = one
    return Catalog(tuple(packs.values()), tuple(broken))


def plugin_manager() -> pluggy.PluginManager:
    """Make a plugin manager that knows our hooks and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


# pluggy's own loader has no try, and what a plugin's import or hook raises can be anything
_ANYTHING = (Exception, SystemExit)


def _register(manager: pluggy.PluginManager, found: Iterable[EntryPoint]) -> tuple[dict[str, str], list[BrokenPlugin]]:
    sources: dict[str, str] = {}
    broken = []
    for entry in sorted(found, key=lambda entry: (_distribution(entry), entry.name)):
        try:
            manager.register(entry.load(), name=entry.name)
            sources[entry.name] = _distribution(entry)
        except _ANYTHING as error:
            broken.append(BrokenPlugin(entry.name, _distribution(entry), _told(error)))
    return sources, broken


def _offers(
    manager: pluggy.PluginManager, sources: dict[str, str], broken: list[BrokenPlugin]
) -> Iterable[tuple[str, Sequence[Pack]]]:
    for implementation in manager.hook.modularbase_packs.get_hookimpls():
        name = implementation.plugin_name
        try:
            offered = implementation.function()
            if not isinstance(offered, (list, tuple)) or not all(isinstance(pack, Pack) for pack in offered):
                raise TypeError("modularbase_packs must return a list of modularbase_core.sdk.pack.Pack")
        except _ANYTHING as error:
            broken.append(BrokenPlugin(name, sources.get(name, ""), _told(error)))
        else:
            yield name, offered


def _installed(pack: Pack, distribution: str) -> InstalledPack:
    manifest = pack.manifest
    for file in manifest.files:
        if not (pack.directory / file).is_file():
            raise PackError(f"{pack.directory / file} is missing; install {distribution or manifest.id} again")
    return InstalledPack(pack, manifest, distribution)


def _name_of(pack: Pack) -> str:
    try:
        return pack.manifest.id
    except ModularBaseError:
        return pack.directory.name


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ModularBaseError) else f"{type(error).__name__}: {text}"
