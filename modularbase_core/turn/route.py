"""Hidden states of the user's message to the packs that answer.

Scores are independent of each other, so an installed pack that is not chosen changes nothing; where none
reaches the threshold, general chat answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequence_

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.executable import BoundProgram
from modularbase_core.device.weights import Routing
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Route, RoutedPack
from modularbase_core.turn.understand import Understanding

HEAD_TOKENS = TAIL_TOKENS = 128
"""Of a longer message the router reads its beginning and its end."""


class Routes:
    """The router's program and the keys of the packs that may be chosen."""

    def __init__(
        self,
        route: BoundProgram,
        keys: Mapping[str, Routing],
        fallback: str,
        understanding: Understanding,
        buffers: RowBuffers,
        *,
        threshold: float = 0.5,
        packs_per_turn: int = 1,
    ) -> None:
        self._route, self._keys, self._fallback = route, keys, fallback
        self._understanding, self._buffers = understanding, buffers
        self._threshold, self._packs_per_turn = threshold, packs_per_turn

    def choose(self, sequence: Sequence, start: int, end: int) -> Route:
        """Route by the message at tokens start..end of `sequence`, already understood."""
        scores = self.scores(self._query(sequence, start, end)) if end > start and self._keys else {}
        return choose(scores, self._fallback, threshold=self._threshold, packs_per_turn=self._packs_per_turn)

    def scores(self, query: NDArray[np.float32]) -> dict[str, float]:
        """Return sigmoid(scale * max(keys @ query) + bias) by pack id."""
        out = {}
        for pack_id, routing in self._keys.items():
            logit = routing.scale * float((routing.keys @ query).max()) + routing.bias
            out[pack_id] = float(1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0))))
        return out

    def _query(self, sequence: Sequence, start: int, end: int) -> NDArray[np.float32]:
        table = sequence.table
        slots = table.slots(start, end - start)
        if len(slots) > HEAD_TOKENS + TAIL_TOKENS:
            slots = slots[:HEAD_TOKENS] + slots[-TAIL_TOKENS:]
        hidden = self._understanding.recall_slots(slots)
        first = self._buffers.put("route.starts", np.zeros(1, np.int32))
        count = self._buffers.put("route.lengths", np.array([len(slots)], np.int32))
        query: NDArray[np.float32] = self._route(hidden, first, count).numpy()[0].astype(np.float32)
        return query


def choose(scores: Mapping[str, float], fallback: str, *, threshold: float, packs_per_turn: int) -> Route:
    """Choose the best packs at or over the threshold, weights in proportion to their scores; else the fallback."""
    best = sorted((pack for pack in scores if scores[pack] >= threshold), key=lambda pack: (-scores[pack], pack))
    chosen = best[:packs_per_turn]
    if not chosen:
        return Route((RoutedPack(fallback, 1.0, None),), dict(scores))
    total = sum(scores[pack] for pack in chosen)
    return Route(tuple(RoutedPack(pack, scores[pack] / total, scores[pack]) for pack in chosen), dict(scores))


def force(pack_ids: Sequence_[str]) -> Route:
    """Route to the packs that the user named, each once, equally weighted."""
    distinct = list(dict.fromkeys(pack_ids))
    return Route(tuple(RoutedPack(pack, 1.0 / len(distinct), None) for pack in distinct))
