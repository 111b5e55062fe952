"""Loads plugins and asks them for packs: how long each took, what is broken, and what will never be called.

One broken plugin never stops the rest. What its packs are worth is decided in `catalog`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy
from importlib_metadata import EntryPoint

from modularbase_core.errors import ModularBaseError, PluginError, nearest
from modularbase_core.packs.limits import distribution_of, plain
from modularbase_core.sdk import hookspecs
from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that was imported and asked for its packs.

    seconds: what both took. faults: what of it is never called, and why, a sentence each.
    """

    name: str
    distribution: str
    seconds: float = 0.0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin, or one pack of it, that cannot be used, and why.

    pack: the pack's id, or its folder's name where no id can be read; empty for a whole plugin. seconds: what it
    took to find out.
    """

    name: str
    distribution: str
    reason: str
    pack: str = ""
    seconds: float = 0.0

    def is_called(self, word: str) -> bool:
        """Whether `word` names the plugin, its distribution or the pack; - and _ are the same, as for pip."""
        names = (self.pack,) if self.pack else (self.name, self.distribution)
        return plain(word) in [plain(name) for name in names if name]


def plugin_manager() -> pluggy.PluginManager:
    """Make a plugin manager that knows our hooks and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


# pluggy's own loader has no try, and what a plugin's import or hook raises can be anything
_ANYTHING = (Exception, SystemExit)


@dataclass(slots=True)
class Plugins:
    """The plugins of one manager while they are loaded. offers: each one's packs, in order."""

    manager: pluggy.PluginManager
    loaded: list[LoadedPlugin] = field(default_factory=list)
    broken: list[BrokenPlugin] = field(default_factory=list)
    offers: list[tuple[LoadedPlugin, Sequence[Pack]]] = field(default_factory=list)

    def load(self, entries: Iterable[EntryPoint]) -> None:
        """Ask the plugins that the manager holds, then import and ask those that `entries` name."""
        for name, plugin in self.manager.list_name_plugin():
            if plugin is not None:
                self._ask(name, "", plugin, time.perf_counter())
        for entry in sorted(entries, key=lambda entry: (distribution_of(entry), entry.name)):
            start = time.perf_counter()
            distribution = distribution_of(entry)
            try:
                name, plugin = _register(self.manager, entry)
            except _ANYTHING as error:
                self._give_up(entry.name, distribution, error, start)
            else:
                self._ask(name, distribution, plugin, start)

    # Any: a plugin is a module or an object of any kind
    def _ask(self, name: str, distribution: str, plugin: Any, start: float) -> None:
        offers: list[Pack] = []
        try:
            for implementation in self.manager.hook.modularbase_packs.get_hookimpls():
                if implementation.plugin is plugin and not _wraps(implementation):
                    offers += _offered(implementation.function())
            faults = tuple(_faults(self.manager, plugin))
        except _ANYTHING as error:
            self.manager.unregister(plugin)  # a broken plugin is not used at all
            self._give_up(name, distribution, error, start)
        else:
            one = LoadedPlugin(name, distribution, time.perf_counter() - start, faults)
            self.loaded.append(one)
            self.offers.append((one, offers))

    def _give_up(self, name: str, distribution: str, error: BaseException, start: float) -> None:
        self.broken.append(BrokenPlugin(name, distribution, told(error), seconds=time.perf_counter() - start))


def told(error: BaseException) -> str:
    """Return what is wrong on one line, with the kind of error where it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ModularBaseError) else f"{type(error).__name__}: {text}"


# Any: a plugin is a module or an object of any kind
def _register(manager: pluggy.PluginManager, entry: EntryPoint) -> tuple[str, Any]:
    """Import and register a plugin; return it with its name, which a second of that name shares with its source."""
    plugin = entry.load()
    if plugin is None:
        raise PluginError(f"{entry.value} is None; name a module or an object that has hooks")
    if manager.is_registered(plugin):
        raise PluginError(
            f"{entry.value} is already loaded as the plugin {manager.get_name(plugin)!r}; uninstall one of the two"
        )
    name = entry.name
    if manager.has_plugin(name):
        name = f"{name} of {distribution_of(entry)}"
    try:
        manager.register(plugin, name=name)
    except BaseException:
        if manager.is_registered(plugin):  # pluggy 1.5 has taken some of its hooks
            manager.unregister(plugin)
        raise
    return name, plugin


def _offered(answer: object) -> Sequence[Pack]:
    if not isinstance(answer, (list, tuple)) or not all(isinstance(pack, Pack) for pack in answer):
        raise TypeError("modularbase_packs must return a list of modularbase_core.sdk.pack.Pack")
    return answer


# Any: a plugin is a module or an object of any kind
def _faults(manager: pluggy.PluginManager, plugin: Any) -> Iterable[str]:
    """Tell which hooks of a plugin are never called: misspelt ones and wrappers."""
    callers = manager.get_hookcallers(plugin) or []
    known = [name for name in vars(hookspecs) if name.startswith(f"{PROJECT}_")]
    for caller in sorted(callers, key=lambda caller: caller.name):
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            if not caller.has_spec() and not implementation.optionalhook:
                yield f"there is no hook {caller.name!r}{nearest(caller.name, known)}; it is never called"
            elif _wraps(implementation):
                yield f"{caller.name} is a wrapper, which is never called; make it a plain hook"
    if not callers:
        yield "it has no hook; mark its functions with modularbase_core.sdk.hookimpl"


def _wraps(implementation: pluggy.HookImpl) -> bool:
    return implementation.wrapper or implementation.hookwrapper
