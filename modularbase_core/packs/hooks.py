"""Calls to plugins' hooks: a plugin that raises is set aside with a note and never stops a turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pluggy

from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished
from modularbase_core.sdk.fusion import Fusion

# what a plugin raises can be anything
_ANYTHING = (Exception, SystemExit)


class Hooks:
    """The hooks of one model. faults: what went wrong in plugins since `take_faults`, a sentence each."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._faults: list[str] = []

    def take_faults(self) -> list[str]:
        """Return the faults so far and forget them."""
        faults, self._faults = self._faults, []
        return faults

    def scores(self, message: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Return `scores` with every plugin's changes, clipped to 0..1; unknown packs are left out."""
        out = dict(scores)
        for name, changed in self._each("modularbase_scores", message=message, scores=dict(scores)):
            for pack_id, score in self._checked(name, dict, changed).items():
                if pack_id in out:
                    out[pack_id] = min(1.0, max(0.0, float(score)))
        return out

    def route(self, message: str, scores: Mapping[str, float], packs: Sequence[str]) -> tuple[str, list[str]] | None:
        """Return the plugin that chooses the packs, by name, and what it chooses, those that exist; or None."""
        for name, chosen in self._each("modularbase_route", message=message, scores=dict(scores), packs=tuple(packs)):
            fitting = [pack for pack in dict.fromkeys(self._checked(name, list, chosen)) if pack in packs]
            if fitting:
                return name, fitting
        return None

    def fusions(self) -> dict[str, Fusion]:
        """Return every fusion by name; a plugin's wins over ours."""
        out: dict[str, Fusion] = {}
        for name, offered in self._each("modularbase_fusions"):
            for fusion in self._checked(name, list, offered):
                if isinstance(fusion, Fusion):
                    out.setdefault(fusion.name, fusion)
        return out

    def fallback(self, pack_id: str, candidates: Sequence[str]) -> list[str]:
        """Return which of `candidates` may answer for a pack that cannot be loaded, the best first, perhaps none."""
        for name, chosen in self._each("modularbase_fallback", pack_id=pack_id, candidates=tuple(candidates)):
            fitting = [pack for pack in dict.fromkeys(self._checked(name, list, chosen)) if pack in candidates]
            if fitting:
                return fitting
        return []

    def importance(self, role: str, text: str, age: int) -> float:
        """Return the highest importance that any plugin gives, 0..1."""
        given = [
            float(value)
            for _, value in self._each("modularbase_importance", role=role, text=text, age=age)
            if isinstance(value, (int, float))
        ]
        return min(1.0, max(0.0, max(given, default=0.0)))

    def targets(self) -> dict[str, Mapping[str, Any]]:
        """Return every compile target by name; a plugin's wins over ours."""
        out: dict[str, Mapping[str, Any]] = {}
        for name, offered in self._each("modularbase_targets"):
            for target, described in self._checked(name, dict, offered).items():
                out.setdefault(target, described)
        return out

    def pack_loaded(self, event: PackLoaded) -> None:
        """Tell plugins that a pack came into a slot."""
        list(self._each("modularbase_pack_loaded", event=event))

    def pack_evicted(self, event: PackEvicted) -> None:
        """Tell plugins that a pack left its slot."""
        list(self._each("modularbase_pack_evicted", event=event))

    def turn_finished(self, event: TurnFinished) -> None:
        """Tell plugins that an answer ended."""
        list(self._each("modularbase_turn_finished", event=event))

    # Any: each hook has its own arguments and result, checked by who asked
    def _each(self, hook: str, **arguments: Any) -> Iterable[tuple[str, Any]]:
        """Call one plugin after the other, the last registered first, and yield the answers that are not None."""
        caller = getattr(self._manager.hook, hook)
        for implementation in reversed(caller.get_hookimpls()):
            try:
                taken = {key: arguments[key] for key in implementation.argnames}
                answer = implementation.function(**taken)
            except _ANYTHING as error:
                self._blame(implementation.plugin_name, f"{hook} failed ({type(error).__name__}: {error})")
            else:
                if answer is not None:
                    yield implementation.plugin_name, answer

    def _checked(self, plugin: str, kind: type, answer: Any) -> Any:
        kinds = (Mapping,) if kind is dict else (list, tuple)
        if isinstance(answer, kinds):
            return answer
        self._blame(plugin, f"returned {type(answer).__name__} where a {kind.__name__} is wanted")
        return kind()

    def _blame(self, plugin: str, what: str) -> None:
        self._faults.append(f"plugin {plugin!r} {' '.join(what.split())}")
