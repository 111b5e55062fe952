"""What a section of the script works on, and the model that it loads: a set of packs as the product runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu.sets import SETS, PackSet, builds_of
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.context.page import PageTable
from modularbase_core.device.artefact import artefact_directory
from modularbase_core.device.target import Target, cpu_target, cuda_target
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.host import parts as parts_module
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence as Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a section works on. cache: a cache folder with artefacts; made: where sets write their packs; gpus: of them.

    small: take sizes that are over in seconds, to try the script itself.
    """

    set: str
    precision: str
    device: str
    cache: Path
    made: Path
    gpus: tuple[str, ...] = ()
    small: bool = False

    @property
    def packs(self) -> PackSet:
        """The set."""
        return SETS[self.set]()

    @property
    def target(self) -> Target:
        """What its artefacts are compiled for."""
        return cuda_target(self.gpus) if self.device == "cuda" else cpu_target()

    @property
    def memory_bytes(self) -> int:
        """What all may take: the budget that the presets are made for."""
        return (1 if self.small else 4) << 30


def load(options: Options, **settings: Any) -> tuple[Parts, dict[str, Path]]:
    """Load a set as the product would, with artefacts that are there; nothing is compiled for a GPU here."""
    one = options.packs
    builds = builds_of(one, options.target, options.precision)
    if isinstance(builds, str):
        raise SystemExit(builds)
    if options.device == "cuda" and not all(artefact_directory(build, options.cache).is_dir() for build in builds):
        raise SystemExit(f"{one.name} in {options.precision} was prepared from other sources; run --prepare again")
    directories = one.make(options.made)
    parts_module.target_of = lambda device: options.target  # type: ignore[assignment]
    config = EngineConfig(
        device=options.device,
        cache_dir=options.cache,
        memory_bytes=options.memory_bytes,
        base_precision=options.precision,
        pack_precision=options.precision,
        prefetch=False,
        prefix_tokens=0,
        draft_tokens=0,
        **settings,
    )
    return Parts(config, catalog_of(directories), None), directories


def answer(parts: Parts, engine: Engine, pack: str, tokens: list[int], steps: int) -> list[np.ndarray]:
    """Return the logits of a greedy answer, [V] each."""
    route = force([pack])
    one = Conversation(PageTable(parts.base.window), route=route)
    with engine.slots.hold(route.ids) as slots:
        placed = {slot.pack_id or "": slot.content for slot in slots}
        engine.understanding.ingest(one, tokens)
        logits = [engine.decoding.prefill(one, placed).copy()]
        for _ in range(steps):
            logits.append(engine.decoding.step([one], [int(logits[-1].argmax())], placed)[0].copy())
        engine.release(one)
    return logits
