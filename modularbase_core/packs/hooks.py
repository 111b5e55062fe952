"""Calls to plugins' hooks: what raises or answers amiss is left out with a note and never stops a turn.

What plugins print meanwhile goes to standard error: standard output is the answer's. Ctrl-C goes through.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from numbers import Real
from typing import Any, TypeVar

import pluggy

from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished
from modularbase_core.sdk.fusion import Fusion

_Answer = TypeVar("_Answer")

# what a plugin raises can be anything
_ANYTHING = (Exception, SystemExit)


class Hooks:
    """The hooks of one model, called plugin by plugin.

    Precedence is pluggy's: the plugin that was registered last comes first, ours comes last.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._faults: dict[str, None] = {}

    def take_faults(self) -> list[str]:
        """Return what went wrong in plugins since the last call, a sentence each and each once."""
        faults, self._faults = list(self._faults), {}
        return faults

    def scores(self, message: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Return `scores` as plugins change them, clipped to 0..1; what they say of other packs is left out.

        Each plugin sees what those before it changed; the one of the highest precedence has the last word.
        """
        out = dict(scores)
        hook = "modularbase_scores"
        for plugin in reversed(list(self._plugins(hook))):
            changed = self._ask(plugin, hook, _scores, message=message, scores=dict(out)) or {}
            out.update((pack_id, score) for pack_id, score in changed.items() if pack_id in out)
        return out

    def route(self, message: str, scores: Mapping[str, float], packs: Sequence[str]) -> tuple[str, list[str]] | None:
        """Return the plugin that chooses the packs, by name, and what it chooses, those that exist; or None."""
        hook = "modularbase_route"
        for plugin in self._plugins(hook):
            chosen = self._ask(plugin, hook, _names, message=message, scores=dict(scores), packs=tuple(packs))
            if fitting := self._fitting(plugin, chosen, packs):
                return plugin.plugin_name, fitting
        return None

    def fusions(self) -> dict[str, Fusion]:
        """Return every fusion by name; a plugin's wins over ours."""
        out: dict[str, Fusion] = {}
        hook = "modularbase_fusions"
        for plugin in self._plugins(hook):
            for fusion in self._ask(plugin, hook, _fusions) or ():
                out.setdefault(fusion.name, fusion)
        return out

    def fallback(self, pack_id: str, candidates: Sequence[str]) -> list[str]:
        """Return which of `candidates` may answer for a pack that cannot be loaded, the best first, perhaps none."""
        hook = "modularbase_fallback"
        for plugin in self._plugins(hook):
            chosen = self._ask(plugin, hook, _names, pack_id=pack_id, candidates=tuple(candidates))
            if fitting := self._fitting(plugin, chosen, candidates):
                return fitting
        return []

    def importance(self, role: str, text: str, age: int) -> float:
        """Return the highest importance that any plugin gives, 0..1."""
        hook = "modularbase_importance"
        given = [self._ask(plugin, hook, _share, role=role, text=text, age=age) for plugin in self._plugins(hook)]
        return max((value for value in given if value is not None), default=0.0)

    # Any: plain JSON values, as `device.target.Target.to_dict` gives them
    def targets(self) -> dict[str, Mapping[str, Any]]:
        """Return every compile target by name; a plugin's wins over ours."""
        out: dict[str, Mapping[str, Any]] = {}
        hook = "modularbase_targets"
        for plugin in self._plugins(hook):
            for target, described in (self._ask(plugin, hook, _targets) or {}).items():
                out.setdefault(target, described)
        return out

    # Any: a cold store, which lies on a higher floor
    def cold_stores(self) -> dict[str, Callable[..., Any]]:
        """Return what opens every kind of cold store, by name; a plugin's wins over ours."""
        out: dict[str, Callable[..., Any]] = {}
        hook = "modularbase_cold_stores"
        for plugin in self._plugins(hook):
            for name, opener in (self._ask(plugin, hook, _openers) or {}).items():
                out.setdefault(name, opener)
        return out

    def pack_loaded(self, event: PackLoaded) -> None:
        """Tell plugins that a pack came into a slot."""
        self._tell("modularbase_pack_loaded", event)

    def pack_evicted(self, event: PackEvicted) -> None:
        """Tell plugins that a pack left its slot."""
        self._tell("modularbase_pack_evicted", event)

    def turn_finished(self, event: TurnFinished) -> None:
        """Tell plugins that an answer ended."""
        self._tell("modularbase_turn_finished", event)

    def _tell(self, hook: str, event: object) -> None:
        for plugin in self._plugins(hook):
            self._ask(plugin, hook, lambda _: None, event=event)

    def _plugins(self, hook: str) -> Iterator[pluggy.HookImpl]:
        """Yield the implementations of a hook, the highest precedence first; wrappers are never called."""
        for one in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            if not (one.wrapper or one.hookwrapper):
                yield one

    # Any: each hook has its own arguments, and `read` takes whatever the plugin answers
    def _ask(
        self, plugin: pluggy.HookImpl, hook: str, read: Callable[[Any], _Answer], **arguments: Any
    ) -> _Answer | None:
        """Return a plugin's answer as `read` takes it; None where it has none, raises, or answers amiss."""
        try:
            with redirect_stdout(sys.stderr):
                answer = plugin.function(*(arguments[name] for name in plugin.argnames))
                return None if answer is None else read(answer)
        except _WrongAnswer as error:
            self._blame(plugin, f"answers {hook} with {error}; its answer is left out")
        except _ANYTHING as error:
            self._blame(plugin, f"failed in {hook} ({type(error).__name__}: {error}); it is left out")
        return None

    def _fitting(self, plugin: pluggy.HookImpl, chosen: Sequence[str] | None, packs: Sequence[str]) -> list[str]:
        """Return the chosen packs that may be chosen, each once; a choice of none that may be is noted."""
        fitting = [pack for pack in dict.fromkeys(chosen or ()) if pack in packs]
        if chosen and not fitting:
            self._blame(plugin, f"chooses {', '.join(chosen)}, none of which can answer; its choice is left out")
        return fitting

    def _blame(self, plugin: pluggy.HookImpl, what: str) -> None:
        self._faults[f"plugin {plugin.plugin_name!r} {' '.join(what.split())}"] = None


class _WrongAnswer(Exception):  # noqa: N818  # it is told in the plugin's name, never raised to a caller
    """An answer that is not of the kind that its hook gives."""


# Any, here and below: whatever a plugin answers
def _scores(answer: Any) -> dict[str, float]:
    return {pack_id: _share(score) for pack_id, score in _mapping(answer).items()}


def _share(answer: Any) -> float:
    if isinstance(answer, bool) or not isinstance(answer, Real) or not math.isfinite(answer):
        raise _WrongAnswer(f"{answer!r} where a number from 0 to 1 is wanted")
    return min(1.0, max(0.0, float(answer)))


def _names(answer: Any) -> list[str]:
    names = _sequence(answer)
    if not all(isinstance(name, str) for name in names):
        raise _WrongAnswer(f"{answer!r} where a list of pack ids is wanted")
    return names


def _fusions(answer: Any) -> list[Fusion]:
    fusions = _sequence(answer)
    for one in fusions:
        if not isinstance(one, Fusion):
            raise _WrongAnswer(f"a list that holds {_kind(one)} where modularbase_core.sdk.fusion.Fusion is wanted")
    return fusions


def _targets(answer: Any) -> dict[str, Mapping[str, Any]]:
    return {target: _mapping(described) for target, described in _mapping(answer).items()}


def _openers(answer: Any) -> dict[str, Callable[..., Any]]:
    openers = _mapping(answer)
    for one in openers.values():
        if not callable(one):
            raise _WrongAnswer(f"a mapping that holds {_kind(one)} where a callable is wanted")
    return openers


def _mapping(answer: Any) -> dict[Any, Any]:
    if not isinstance(answer, Mapping):
        raise _WrongAnswer(f"{_kind(answer)} where a mapping is wanted")
    return dict(answer)


def _sequence(answer: Any) -> list[Any]:
    if not isinstance(answer, (list, tuple)):
        raise _WrongAnswer(f"{_kind(answer)} where a list is wanted")
    return list(answer)


def _kind(answer: Any) -> str:
    return f"a value of type {type(answer).__name__}"
