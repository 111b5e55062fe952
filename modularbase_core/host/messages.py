"""Where messages are routed to: base and router alone, no pack's weights and no conversation."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modularbase_core.config import EngineConfig
from modularbase_core.host.keys import routing_of
from modularbase_core.host.parts import Parts, Progress
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.resolve import Lineup
from modularbase_core.turn.route import Routes
from modularbase_core.turn.stages import Route


class Messages:
    """Routes messages, each by itself."""

    def __init__(self, parts: Parts, routes: Routes) -> None:
        self._parts, self._routes = parts, routes

    @classmethod
    def open(
        cls, config: EngineConfig, catalog: Catalog, progress: Progress | None = None, hooks: Hooks | None = None
    ) -> Messages:
        """Compile (at first use) and load what routing needs; raises as `host.build` does."""
        parts = Parts(config, catalog, progress, hooks, routing_only=True)
        return cls(parts, parts.routes())

    @property
    def lineup(self) -> Lineup:
        """The packs that run together, and why others do not."""
        return self._parts.lineup

    def queries(self, texts: Sequence_[str]) -> NDArray[np.float32]:
        """Return unit queries [n, key_size]; raises InputError for an empty message."""
        return self._routes.queries.of_texts(texts)

    def scores(self, texts: Sequence_[str]) -> list[dict[str, float]]:
        """Return each message's scores by pack id, before plugins have a say."""
        return [self._routes.scores(query) for query in self.queries(texts)]

    def queries_and_scores(self, texts: Sequence_[str]) -> tuple[NDArray[np.float32], list[dict[str, float]]]:
        """Return what `queries` and `scores` do, read once."""
        queries = self.queries(texts)
        return queries, [self._routes.scores(query) for query in queries]

    def route(self, text: str) -> Route:
        """Return the packs that would answer `text` as a first message, as chat would choose them.

        Its notes tell what plugins did wrong.
        """
        route = self._routes.decide(self.scores([text])[0], text)
        return replace(route, notes=(*route.notes, *self._parts.hooks.take_faults()))

    def routing_of(self, prompts: Sequence_[str]) -> dict[str, NDArray[np.float32]]:
        """Make routing keys from messages that a pack should answer: what its routing.safetensors holds.

        Raises InputError for no message, and WeightsError when the installed router cannot calibrate keys.
        """
        return routing_of(list(prompts), self.lineup, self._routes.queries)
