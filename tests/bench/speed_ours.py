"""The product's engine in a process of speed.py: an imported checkpoint, and copies of its pack under other ids."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from speed_shape import BATCH_PROMPT, WARM, WINDOW, context_bytes, random_ids

ITEM_BYTES = 4  # of keys and values on the CPU


class Ours:
    """The product's engine: scheduling and sampling apart, all that a token takes."""

    def __init__(
        self, packs: dict[str, str], more: Sequence[str], cache: str, precision: str, threads: int, level: str = ""
    ) -> None:
        """Load. packs: directories by id; more: the ids of those beside general chat, of its architecture."""
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tiny_packs import catalog_of

        from modularbase_core.config import EngineConfig
        from modularbase_core.host import Parts

        if level:
            _pretend(level)
        config = EngineConfig(
            cache_dir=Path(cache),
            threads=threads,
            base_precision=precision,
            pack_precision=precision,
            memory_bytes=16 << 30,
            hot_tokens=24 * WINDOW,
            slots=1,
            prefetch=False,
        )
        self._parts = Parts(config, catalog_of({name: Path(path) for name, path in packs.items()}), None)
        self._engine, self._chat, self._more = self._parts.engine(), self._parts.lineup.general_chat.id, list(more)
        self._running: list[Any] = []

    def prefill(self, tokens: int) -> float:
        """Time one sequence."""
        return self._begin(1, tokens)

    def decode(self, steps: int) -> float:
        """Time steps of the sequences that were begun last."""
        self._step(WARM)
        begun = time.perf_counter()
        self._step(steps)
        return time.perf_counter() - begun

    def batch(self, sequences: int, steps: int) -> float:
        """Time steps of several sequences."""
        self._begin(sequences, BATCH_PROMPT)
        return self.decode(steps)

    def several(self, steps: int) -> dict[str, float]:
        """Time steps of one sequence under one pack and under two, in turn; bytes: what a step reads of the second."""
        single, both = [self._chat], [self._chat, self._more[0]]
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(3):
            for packs in (single, both):
                self._begin(1, BATCH_PROMPT, packs)
                taken[len(packs)].append(self.decode(steps))
        seen, layers = BATCH_PROMPT + WARM + steps / 2, self._pack.manifest.network.layers
        size = self._pack_bytes() + context_bytes(seen, ITEM_BYTES, layers)
        return {"one": min(taken[1]), "two": min(taken[2]), "bytes": size}

    def swap(self) -> dict[str, float]:
        """Time bringing a pack in that is not in its slot, and copying as many bytes."""
        slots, size = self._engine.slots, self._pack_bytes()
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        taken: dict[str, list[float]] = {"swap": [], "copy": []}
        for _ in range(3):
            for pack_id in reversed(self._more):  # the first one may be there
                begun = time.perf_counter()
                np.copyto(target, source)
                taken["copy"].append(time.perf_counter() - begun)
                assert pack_id not in slots.loaded()
                begun = time.perf_counter()
                with slots.hold([pack_id]):
                    taken["swap"].append(time.perf_counter() - begun)
        return {"swap": float(np.median(taken["swap"])), "copy": float(np.median(taken["copy"])), "bytes": size}

    def read(self) -> int:
        """Return the bytes of weights that a step of one sequence reads; the embedding is the head's matrix."""
        from modularbase_core.device.layouts import planned_bytes

        metas = [one.meta for one in self._parts.executables.values()]
        return sum(planned_bytes(meta) for meta in metas if meta.architecture.kind != "router")

    @property
    def _pack(self) -> Any:
        return self._parts.catalog.find(self._chat)

    def _pack_bytes(self) -> int:
        from modularbase_core.device.layouts import planned_bytes
        from modularbase_core.sdk.architecture import architecture_key

        return planned_bytes(self._parts.executables[architecture_key(self._pack.manifest.network)].meta)

    def _begin(self, sequences: int, tokens: int, packs: Sequence[str] = ()) -> float:
        from modularbase_core.context.page import PageTable
        from modularbase_core.turn.route import force
        from modularbase_core.turn.sequence import Sequence as Conversation

        for one in self._running:
            self._engine.release(one)
        route = force(packs or [self._chat])
        self._running = [Conversation(PageTable(self._parts.base.window), route=route) for _ in range(sequences)]
        with self._engine.slots.hold(route.ids) as held:
            placed = {slot.pack_id: slot.content for slot in held}
            begun = time.perf_counter()
            for one in self._running:
                self._engine.understanding.ingest(one, random_ids(tokens))
                self._engine.decoding.prefill(one, placed)
            return time.perf_counter() - begun

    def _step(self, steps: int) -> None:
        with self._engine.slots.hold(self._running[0].route.ids) as held:
            placed = {slot.pack_id: slot.content for slot in held}
            for step in range(steps):
                self._engine.decoding.step(self._running, [5 + step] * len(self._running), placed)


def _pretend(level: str) -> None:
    """Compile for a lesser processor of the same kind, without what it has beyond `level`."""
    from dataclasses import replace

    from modularbase_core.device import target
    from modularbase_core.host import parts

    lesser = replace(target.cpu_target(), level=level, features=())
    parts.cpu_target = lambda: lesser  # type: ignore[attr-defined]
