"""How fast this machine runs the installed base and a pack, and how much of memory's speed that takes.

Decode reads every weight once a step, so its limit is bytes over bandwidth; both are measured here, in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.page import PageTable
from modularbase_core.device.region import form_bytes
from modularbase_core.device.target import physical_cores
from modularbase_core.errors import InputError
from modularbase_core.host.parts import Parts
from modularbase_core.sdk.architecture import PackArchitecture, architecture_key
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence as Conversation

WARM_STEPS = 4
READ_BYTES = 256 << 20
"""Beyond any cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second, medians of rounds. prefill: of one prompt; decode: by the number of conversations.

    read_bytes_per_second: of memory. step_bytes: of weights, keys and values that a step of one conversation reads.
    """

    prompt_tokens: int
    prefill: float
    decode: dict[int, float]
    read_bytes_per_second: float
    step_bytes: int

    @property
    def bandwidth_share(self) -> float:
        """What part of memory's speed decode of one conversation takes; above 1 where weights stay in a cache."""
        return self.decode[1] * self.step_bytes / self.read_bytes_per_second


def measure(
    parts: Parts,
    pack_id: str,
    *,
    prompt_tokens: int,
    steps: int,
    batches: Sequence[int],
    rounds: int,
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Speed:
    """Time prefill and decode with random tokens, round after round; the first one warms up.

    batches: numbers of conversations, 1 among them. done: called with the rounds that are over and their number.
    Raises InputError where the prompt and the steps do not fit the window.
    """
    window = parts.base.window
    if prompt_tokens + steps + WARM_STEPS > window.trained_tokens:
        raise InputError(
            f"{prompt_tokens} + {steps} tokens do not fit the window of {window.trained_tokens}; give fewer"
        )
    engine, rng = parts.engine(), np.random.default_rng(0)
    tokens = rng.integers(0, parts.base.vocabulary_size, prompt_tokens).tolist()
    memory = np.ones(READ_BYTES // 8, np.int64)
    taken: dict[str, list[float]] = {}
    route = force([pack_id])
    with engine.slots.hold(route.ids) as slots:
        placed = {slot.pack_id or "": slot.content for slot in slots if slot.content is not None}

        def begin(count: int, length: int) -> list[Conversation]:
            begun = [Conversation(PageTable(window), route=route) for _ in range(count)]
            for one in begun:
                engine.understanding.ingest(one, tokens[:length])
                engine.decoding.prefill(one, placed)
            return begun

        def step(conversations: list[Conversation], count: int) -> None:
            for number in range(count):
                engine.decoding.step(conversations, [tokens[number % prompt_tokens]] * len(conversations), placed)

        for number in range(rounds + 1):
            found = {"read": memory.nbytes / _seconds(partial(_read, memory))}
            for batch in batches:
                begun = time.perf_counter()
                conversations = begin(batch, prompt_tokens if batch == 1 else min(prompt_tokens, 32))
                if batch == 1:
                    found["prefill"] = prompt_tokens / (time.perf_counter() - begun)
                step(conversations, WARM_STEPS)
                found[f"decode {batch}"] = batch * steps / _seconds(partial(step, conversations, steps))
                for one in conversations:
                    engine.release(one)
            if number:
                for name, value in found.items():
                    taken.setdefault(name, []).append(value)
            done(number, rounds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return Speed(
        prompt_tokens=prompt_tokens,
        prefill=medians["prefill"],
        decode={batch: medians[f"decode {batch}"] for batch in batches},
        read_bytes_per_second=medians["read"],
        step_bytes=weights_read(parts, pack_id) + _pages_read(parts, pack_id, prompt_tokens + steps // 2),
    )


def weights_read(parts: Parts, pack_id: str) -> int:
    """Count the bytes of weights that a decode step reads; of a table that is only looked up it is a row."""
    programs = [("understand", parts.lineup.base), ("fuse", parts.lineup.base), ("run", parts.catalog.find(pack_id))]
    read = {}
    for program, pack in programs:
        meta = parts.executables[architecture_key(pack.manifest.network)].meta
        for one in meta.programs[program].parameters:
            if not (one.name == "embedding.weight" and (program == "understand" or one.layout == "row")):
                read[pack.id, one.name, one.layout] = form_bytes((one.stored_shape, one.dtype))
    return sum(read.values())


def _pages_read(parts: Parts, pack_id: str, tokens: int) -> int:
    """Count the bytes of keys and values of `tokens` that a step reads, in float32 or float16."""
    pack = parts.catalog.find(pack_id).manifest.network
    assert isinstance(pack, PackArchitecture)
    blocks, layers = parts.base.blocks, parts.base.understanding_layers + parts.base.fusion_layers
    per_token = layers * blocks.kv_heads * blocks.head_size + pack.layers * pack.blocks.kv_heads * pack.blocks.head_size
    return 2 * per_token * tokens * (2 if parts.config.device == "cuda" else 4)


def _read(memory: NDArray[np.int64]) -> None:
    """Read memory on all physical cores: sums of whole numbers, which wait for nothing else."""
    threads = physical_cores()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.sum, np.array_split(memory, threads)))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
