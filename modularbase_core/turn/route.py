"""Hidden states of the user's message to the packs that answer.

Scores are independent of each other, so an installed pack that is not chosen changes nothing; where none
reaches the threshold, general chat answers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.weights import Routing
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.keys import apart, scores
from modularbase_core.turn.queries import Queries
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Route, RoutedPack

LEAST_TOKENS = 32
"""Of a message that is not yet read to its end, fewer say nothing of where it goes."""


class Routes:
    """The keys of packs, and who is chosen by them. packs: every id that may be chosen; hooks: what plugins say."""

    def __init__(
        self,
        queries: Queries,
        keys: Mapping[str, Routing],
        background: NDArray[np.float32],
        fallback: str,
        *,
        packs: Sequence_[str] = (),
        hooks: Hooks | None = None,
        threshold: float = 0.5,
        packs_per_turn: int = 1,
    ) -> None:
        self.packs = tuple(packs) or tuple(keys)
        self.queries, self._keys, self._fallback = queries, keys, fallback
        self._apart = {pack_id: apart(background, one.against) for pack_id, one in keys.items()}
        self._threshold, self._packs_per_turn, self._hooks = threshold, packs_per_turn, hooks

    def choose(self, sequence: Sequence, start: int, token_ids: Sequence_[int], message: str = "") -> Route:
        """Route by the message `token_ids`, in `sequence` from `start`, already understood; plugins see its text."""
        scores = self.scores(self.queries.of(sequence, start, token_ids)) if token_ids and self._keys else {}
        return self.decide(scores, message)

    def lean(self, sequence: Sequence, start: int, token_ids: Sequence_[int]) -> tuple[str, ...]:
        """Name the packs that a message's beginning asks for, before plugins are heard; none if that is too early."""
        if len(token_ids) < LEAST_TOKENS or not self._keys:
            return ()
        scores = self.scores(self.queries.of(sequence, start, token_ids))
        return choose(scores, self._fallback, threshold=self._threshold, packs_per_turn=self._packs_per_turn).ids

    def decide(self, scores: Mapping[str, float], message: str = "") -> Route:
        """Choose by scores as plugins change them, unless a plugin chooses itself."""
        if self._hooks is not None:
            changed = self._hooks.scores(message, {pack: scores.get(pack, 0.0) for pack in self.packs})
            scores = {pack: score for pack, score in changed.items() if score or pack in scores}
            picked = self._hooks.route(message, scores, self.packs)
            if picked is not None:
                plugin, pack_ids = picked
                return _equally(pack_ids, scores, f"chosen by plugin {plugin}")
        return choose(scores, self._fallback, threshold=self._threshold, packs_per_turn=self._packs_per_turn)

    def scores(self, query: NDArray[np.float32]) -> dict[str, float]:
        """Return the score, 0..1, of every pack with keys; none depends on what else is installed."""
        return {
            pack_id: float(scores(query[None], one.keys, one.scale, one.bias, self._apart[pack_id])[0])
            for pack_id, one in self._keys.items()
        }


def choose(scores: Mapping[str, float], fallback: str, *, threshold: float, packs_per_turn: int) -> Route:
    """Choose the best packs at or over the threshold, weights in proportion to their scores; else the fallback."""
    best = sorted((pack for pack in scores if scores[pack] >= threshold), key=lambda pack: (-scores[pack], pack))
    chosen = best[:packs_per_turn]
    if not chosen:
        alone = RoutedPack(fallback, 1.0, scores.get(fallback), f"no pack reached {threshold:g}")
        return Route((alone,), dict(scores), abstained=True)
    reason = f"over the threshold {threshold:g}"
    total = sum(scores[pack] for pack in chosen)
    shares = [scores[pack] / total if total else 1.0 / len(chosen) for pack in chosen]
    packs = (RoutedPack(pack, share, scores[pack], reason) for pack, share in zip(chosen, shares, strict=True))
    return Route(tuple(packs), dict(scores))


def force(pack_ids: Sequence_[str]) -> Route:
    """Route to the packs that the user named, each once, equally weighted; the first one leads."""
    return _equally(pack_ids, {}, "forced")


def trim(route: Route, kept: Container[str], slots: int) -> Route:
    """Leave the packs that are not `kept` out, for want of slots; weights add up to 1 again."""
    left_out = [pack.id for pack in route.packs if pack.id not in kept]
    if not left_out:
        return route
    staying = [pack for pack in route.packs if pack.id in kept]
    total = sum(pack.weight for pack in staying)
    note = f"left out: {', '.join(left_out)}; {slots} slots hold no more packs at once: raise slots or name fewer packs"
    packs = tuple(replace(pack, weight=pack.weight / total) for pack in staying)
    return replace(route, packs=packs, notes=(*route.notes, note))


def stand_in(route: Route, pack_id: str, by: Sequence_[str], note: str) -> Route:
    """Let the packs `by` answer in place of `pack_id`, in equal parts of its share; the heaviest first again."""
    missing = next(pack for pack in route.packs if pack.id == pack_id)
    there, told = {pack.id for pack in route.packs}, f"{pack_id} cannot be loaded"
    new = [RoutedPack(other, 0.0, route.scores.get(other), told) for other in by if other not in there]
    packs = [one for pack in route.packs for one in (new if pack is missing else [pack])]
    part = missing.weight / len(by)
    packs = [replace(pack, weight=pack.weight + part) if pack.id in by else pack for pack in packs]
    heaviest_first = tuple(sorted(packs, key=lambda pack: -pack.weight))
    return replace(route, packs=heaviest_first, notes=(*route.notes, note))


def _equally(pack_ids: Sequence_[str], scores: Mapping[str, float], reason: str) -> Route:
    distinct = list(dict.fromkeys(pack_ids))
    packs = (RoutedPack(pack, 1.0 / len(distinct), scores.get(pack), reason) for pack in distinct)
    return Route(tuple(packs), dict(scores))
