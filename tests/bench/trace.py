"""A long trace of turns over ten packs and two slots: what fails, what fits, how often a pack was there when asked.

Ten packs (copies of the shipped general chat and Python packs with perturbed weights) answer 500 turns of a seeded
trace: domains are drawn by Zipf and switch as a Markov chain does, one turn in ten has two packs, answers are a few
tokens, the whole through the engine. Against: LRU beside LFRU, with and without prefetch, two slots and three, and
an oracle that knows the future (Belady, one pack at a time). Also the bytes that were planned beside those allocated
(counted at every allocation) and the process's own memory.

    python tests/bench/trace.py [--turns 500] [--seed 1] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from many_packs import copy_of, nano_set, with_packs

from modularbase_core.config import EngineConfig
from modularbase_core.device.executable import Device
from modularbase_core.host import Host, build
from modularbase_core.packs.catalog import Catalog, discover
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed

PACKS = tuple(f"domain{number}" for number in range(10))
STAY, HABIT, TWO = 0.5, 0.3, 0.1  # of turns: the same pack again, its usual follower, two packs at once


def main() -> None:
    """Run all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "modularbase-trace"))
    options = parser.parse_args()
    turns = trace(options.turns, options.seed)
    shipped = {one.id: one.pack for one in discover().packs}
    sources = (shipped["general_chat"], shipped["python_code"])
    folders = [
        copy_of(sources[number % 2], options.folder / pack_id, pack_id, number) for number, pack_id in enumerate(PACKS)
    ]
    catalog = with_packs(nano_set(), folders)
    ways = itertools.product((2, 3), ("lru", "lfru"), (False, True))
    rows = []
    for slots, eviction, prefetch in tqdm(list(ways), leave=False):
        # a process for each, so that its memory is its own
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            rows.append(child.submit(run, catalog, turns, options.folder / "cache", slots, eviction, prefetch).result())
    show(rows, {slots: oracle(turns, slots) for slots in (2, 3)})


def trace(count: int, seed: int) -> list[tuple[str, ...]]:
    """Draw the packs of each turn, the heavier first."""
    draw = random.Random(seed)
    popularity = [1 / rank for rank in range(1, len(PACKS) + 1)]
    follower = dict(zip(PACKS, draw.sample(PACKS, len(PACKS)), strict=True))
    turns: list[tuple[str, ...]] = []
    current = PACKS[0]
    for _ in range(count):
        fate = draw.random()
        if fate >= STAY:
            current = follower[current] if fate < STAY + HABIT else draw.choices(PACKS, popularity)[0]
        other = draw.choices(PACKS, popularity)[0]
        turns.append((current, other) if draw.random() < TWO and other != current else (current,))
    return turns


def run(
    catalog: Catalog, turns: list[tuple[str, ...]], cache: Path, slots: int, eviction: str, prefetch: bool
) -> dict[str, object]:
    """Run the trace; what happened."""
    (cache / "pack-history.json").unlink(missing_ok=True)  # each run learns anew
    config = EngineConfig(cache_dir=cache, slots=slots, eviction=eviction, prefetch=prefetch, hot_tokens=2048)
    counted = Counted()
    failures = hits = asked = 0
    with counted, build(config, catalog=catalog) as host:
        begun = time.perf_counter()
        for number, packs in enumerate(turns):
            if host.engine.prefetcher is not None:
                host.engine.prefetcher.wait()  # as it would be while a user reads and writes
            there = host.engine.slots.loaded()
            hits, asked = hits + sum(pack in there for pack in packs), asked + len(packs)
            failures += not answered(host, packs, number)
            assert len(host.engine.slots.loaded()) <= slots + 1
        seconds = time.perf_counter() - begun
        planned = host.budget.planned_bytes
        kernels = sum(one.meta.workspace_bytes for one in host._parts.executables.values())
        own = resident_bytes()
    return {
        "slots": slots,
        "eviction": eviction,
        "prefetch": prefetch,
        "turns": len(turns),
        "failures": failures,
        "hit_rate": hits / asked,
        # what kernels allocate for themselves while they run is not counted, so it is left out of the plan too
        "planned_bytes": planned - kernels,
        "allocated_bytes": counted.most,
        "process_bytes": own,
        "turn_ms": 1e3 * seconds / len(turns),
    }


def answered(host: Host, packs: tuple[str, ...], number: int) -> bool:
    """Ask one question of these packs; whether they, and no others in their place, answered it."""
    question = [Message("user", f"Question {number}: what is a list?")]
    sampling = SamplingConfig(temperature=0, max_tokens=4)
    routed, *_, last = host.chat(question, sampling, packs=list(packs))
    assert isinstance(routed, Routed)
    return {pack.id for pack in routed.packs} == set(packs) and not routed.notes and isinstance(last, Finished)


def oracle(turns: list[tuple[str, ...]], slots: int) -> float:
    """Return the hit rate of evicting who is needed latest, without prefetch."""
    asked = [pack for packs in turns for pack in packs]
    held: set[str] = set()
    hits = 0
    for number, pack in enumerate(asked):
        hits += pack in held
        if pack not in held and len(held) == slots:
            ahead = asked[number + 1 :]
            held.remove(max(held, key=lambda one: ahead.index(one) if one in ahead else len(ahead)))
        held.add(pack)
    return hits / len(asked)


class Counted:
    """Counts the bytes of the device's allocations while it is entered; `most` is the most at any time.

    Nothing is given back during a run (slots are filled anew, not made anew), so that the sum is the most.
    """

    def __init__(self) -> None:
        self.most = 0
        self._made = Device.host_bytes

    def __enter__(self) -> None:
        made = self._made

        def counted(device: Device, size_bytes: int):
            self.most += size_bytes
            return made(device, size_bytes)

        Device.host_bytes = counted  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Device.host_bytes = self._made  # type: ignore[method-assign]


def resident_bytes() -> int:
    """Return the process's own memory, files that are mapped left out."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def show(rows: list[dict[str, object]], best: dict[int, float]) -> None:
    """Print the table and the JSON line."""
    names = ("slots", "eviction", "prefetch", "failures", "hit rate", "planned", "allocated", "process")
    print("".join(f"{name:>{width}}" for name, width in zip(names, (5, 9, 9, 9, 9, 12, 12, 12), strict=True)))
    for row in rows:
        print(
            f"{row['slots']:>5}{row['eviction']:>9}{row['prefetch']!s:>9}{row['failures']:>9}{row['hit_rate']:>9.1%}"
            f"{int(str(row['planned_bytes'])) / 2**20:>8.1f} MiB{int(str(row['allocated_bytes'])) / 2**20:>8.1f} MiB"
            f"{int(str(row['process_bytes'])) / 2**20:>8.1f} MiB"
        )
    for slots, rate in best.items():
        print(f"with {slots} slots, knowing the future and without prefetch: {rate:.1%}")
    print(json.dumps({"runs": rows, "oracle": best}))


if __name__ == "__main__":
    main()
