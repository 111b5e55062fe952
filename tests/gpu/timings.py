"""What is measured: speed of decode and prefill, of the device's memory, of swaps; and bytes taken."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from gpu.options import Options, answer, load

from modularbase_core.context.page import PageTable
from modularbase_core.device.executable import Device
from modularbase_core.device.layouts import planned_bytes
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.host.speed import measure
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence as Conversation

BATCHES: Final = (1, 4, 8)


def bandwidth(options: Options) -> dict[str, Any]:
    """Copy memory of the device to itself, from the host, and a row of logits to it: the best of some runs."""
    size = (1 if options.small else 512) << 20
    device = Device(options.device, graphs=False)
    both, host = device.tensor((2, size), "uint8"), np.ones(size, np.uint8)
    one = device.tensor((size,), "uint8")
    within = _best(partial(both.copy_row, 0, 1), device, 10)
    inward = _best(partial(one.write, host), device, 5)
    row = device.tensor((1, 65536), options.target.dtype)
    outward = _best(lambda: row.numpy().astype(np.float32), device, 20)
    rates = {"copy_gb_s": 2 * size / within / 1e9, "from_host_gb_s": size / inward / 1e9}
    return {"ok": True, **rates, "logits_us": 1e6 * outward}


def speed(options: Options) -> dict[str, Any]:
    """Time prefill and decode with and without graphs, as `modularbase bench` does."""
    one, found = options.packs, {}
    steps, rounds, batches = (4, 1, (1, 2)) if options.small else (64, 3, BATCHES)
    for graphs in (True, False):
        parts, _ = load(options, cuda_graphs=graphs)
        pack = one.packs[0]
        measured = measure(parts, pack, prompt_tokens=one.prompt, steps=steps, batches=batches, rounds=rounds)
        found["graphs" if graphs else "eager"] = {
            "prefill": measured.prefill,
            "decode": {str(batch): rate for batch, rate in measured.decode.items()},
            "step_bytes": measured.step_bytes,
        }
        recorded = parts.device.graphs
        found["recorded"] = max(found.get("recorded", 0), len(recorded) if recorded is not None else 0)
    return {"ok": options.device == "cpu" or found["recorded"] > 0, "prompt": one.prompt, **found}


def swap(options: Options) -> dict[str, Any]:
    """Time bringing packs in by turns, more of them than there are slots; and decoding while another thread does so."""
    parts, _ = load(options)
    engine, names = parts.engine(), options.packs.packs[1:]
    rounds, steps = (2, 4) if options.small else (8, 200)
    seconds: list[float] = []
    for number in range(rounds):
        taken = _bring(engine, names)
        seconds += taken if number else []  # the first time they are repacked and read
    metas = [one.meta for one in parts.executables.values() if one.meta.architecture.kind == "pack"]
    size, middle = max(map(planned_bytes, metas)), statistics.median(seconds)
    said = {"swapped": len(names) > parts.config.slots, "bytes": size, "ms": 1e3 * middle, "gb_s": size / middle / 1e9}
    alone, over = _step_ms(parts, engine, options.packs.packs[0], steps), threading.Event()

    def keep_bringing() -> None:
        while not over.is_set():
            _bring(engine, names)

    other = threading.Thread(target=keep_bringing)
    other.start()
    try:
        beside = _step_ms(parts, engine, options.packs.packs[0], steps)
    finally:
        over.set()
        other.join()
    return {"ok": True, **said, "step_ms": alone, "step_beside_ms": beside}


def memory(options: Options) -> dict[str, Any]:
    """Compare what the device gave with what was planned, once every slot is full and turns have run."""
    before = _used(Device(options.device, graphs=False))
    parts, _ = load(options)
    engine = parts.engine()
    for name in options.packs.packs[: parts.config.slots + 1]:
        answer(parts, engine, name, list(range(5, 69)), 4)
    used, planned = _used(parts.device) - before, parts.budget.planned_bytes
    return {"ok": used <= options.memory_bytes, "planned": planned, "measured": used, "total": options.memory_bytes}


def _bring(engine: Engine, names: Sequence[str]) -> list[float]:
    """Bring packs in one after the other; return the seconds of each."""
    seconds = []
    for name in names:
        begun = time.perf_counter()
        with engine.slots.hold([name]):
            seconds.append(time.perf_counter() - begun)
    return seconds


def _step_ms(parts: Parts, engine: Engine, pack: str, steps: int) -> float:
    """Return the median of a decode step's milliseconds."""
    one, taken = Conversation(PageTable(parts.base.window), route=force([pack])), []
    with engine.slots.hold([pack]) as slots:
        placed = {pack: slots[0].content}
        engine.understanding.ingest(one, list(range(5, 69)))
        engine.decoding.prefill(one, placed)
        for step in range(4 + steps):
            begun = time.perf_counter()
            engine.decoding.step([one], [5 + step], placed)
            taken.append(time.perf_counter() - begun)
        engine.release(one)
    return 1e3 * statistics.median(taken[4:])


def _best(work: Callable[[], object], device: Device, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        device.synchronise()
        begun = time.perf_counter()
        work()
        device.synchronise()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _used(device: Device) -> int:
    """Return the bytes of the device that are taken; on a CPU those that this process keeps resident, files apart."""
    device.synchronise()
    if device.cuda is not None:
        free, total = device.cuda.free_bytes()
        return total - free
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
