"""Speed and memory of a turn on the shipped nano set, beside the same weights in eager torch, in one run.

Measures prefill and decode (tokens/s, 1 and 8 sequences, with the pack) interleaved with the eager peer (SDPA,
growing KV cache, float32, on one thread and on all, the better counts; ours as --precision says), the read bandwidth
that bounds decode, the first compile, and, in fresh processes, peak memory and the time from start to first token on a
warm cache.

    python tests/bench/turn.py [--repeats 5] [--precision auto] [--skip-compile]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from growing import EagerModel

from modularbase_core.config import EngineConfig
from modularbase_core.context.page import PageTable
from modularbase_core.device.artefact import ensure_artefacts
from modularbase_core.device.target import cpu_target, physical_cores
from modularbase_core.host import Parts, plan_builds
from modularbase_core.host.speed import weights_read
from modularbase_core.packs.catalog import discover
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence

PROMPT, ANSWER = 512, 64
PACK = "general_chat"

FIRST_TOKEN = """
import sys, time
begun = time.perf_counter()
from modularbase_core.config import EngineConfig
from modularbase_core.host import build
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
with build(EngineConfig()) as host:
    ready = time.perf_counter()
    question = [Message("user", "What is a list in Python?")]
    for event in host.chat(question, SamplingConfig(temperature=0, max_tokens=64)):
        if type(event).__name__ == "Token":
            break
    first = time.perf_counter()
assert "torch" not in sys.modules
# not ru_maxrss: a child inherits its parent's
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(ready - begun, first - begun, int(peak) * 1024)
"""


def main() -> None:
    """Run all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-compile", action="store_true", help="do not time a first compile")
    parser.add_argument("--precision", default="auto", help="of ours; the peer is float32")
    options = parser.parse_args()
    torch.set_num_threads(physical_cores())
    chosen = {"base_precision": options.precision, "pack_precision": options.precision}
    parts = Parts(EngineConfig(**chosen), discover(), None)
    figures: dict[str, object] = {"threads": physical_cores(), "read_gb_s": read_bandwidth() / 1e9}
    for batch in (1, 8):
        figures[f"batch_{batch}"] = compare(parts, batch, options.repeats)
    figures["floor_decode_ms"] = 1e3 * weights_read(parts, PACK) / (figures["read_gb_s"] * 1e9)  # type: ignore[operator]
    figures |= fresh_process(options.repeats)
    if not options.skip_compile:
        figures["first_compile_s"] = first_compile(parts)
    show(figures)


def compare(parts: Parts, batch: int, repeats: int) -> dict[str, float]:
    """Time prefill and decode of `batch` sequences, ours and the peer's in turn; medians and their ratio."""
    packs = {one.id: one.pack.directory for one in (parts.lineup.base, *parts.lineup.routable)}
    peer = EagerModel(packs[parts.lineup.base.id], packs[PACK])
    engine = parts.engine()
    tokens = np.random.default_rng(0).integers(5, 8000, (batch, PROMPT)).tolist()
    samples: dict[str, list[float]] = {name: [] for name in ("prefill", "decode")}
    peers: dict[tuple[str, int], list[float]] = {(name, n): [] for name in samples for n in {1, physical_cores()}}
    with engine.slots.hold([PACK]) as slots:
        placed = {PACK: slots[0].content}
        for number in range(repeats + 1):
            sequences = [Sequence(PageTable(parts.base.window), route=force([PACK])) for _ in range(batch)]

            def prefill(sequences: list[Sequence] = sequences) -> None:
                for one, ids in zip(sequences, tokens, strict=True):
                    engine.understanding.ingest(one, ids)
                    engine.decoding.prefill(one, placed)

            def decode(sequences: list[Sequence] = sequences) -> None:
                for step in range(ANSWER):
                    engine.decoding.step(sequences, [5 + step] * batch, placed)

            def peer_decode() -> None:
                for step in range(ANSWER):
                    peer.feed(torch.full((batch, 1), 5 + step))

            timed = {"prefill": clock(prefill), "decode": clock(decode)}
            theirs = {}
            for threads in {1, physical_cores()}:
                torch.set_num_threads(threads)
                peer.start(batch, PROMPT + ANSWER)
                theirs["prefill", threads] = clock(lambda: peer.feed(torch.tensor(tokens)))
                theirs["decode", threads] = clock(peer_decode)
            for one in sequences:
                engine.release(one)
            if number:  # the first round warms up
                for name, seconds in timed.items():
                    samples[name].append(seconds)
                for key, seconds in theirs.items():
                    peers[key].append(seconds)
    out: dict[str, float] = {}
    for name, size in (("prefill", batch * PROMPT), ("decode", batch * ANSWER)):
        best = min((peers[key] for key in peers if key[0] == name), key=statistics.median)
        out[name], out[f"peer_{name}"] = size / statistics.median(samples[name]), size / statistics.median(best)
        out[f"{name}_ratio"] = statistics.median(b / a for a, b in zip(samples[name], best, strict=True))
    return out


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def read_bandwidth() -> float:
    """Return bytes/s of reading memory well beyond the caches, on all threads; the best of some runs."""
    data = torch.ones(1 << 27)
    return data.nbytes / min(clock(lambda: data.sum()) for _ in range(8))


def fresh_process(repeats: int) -> dict[str, float]:
    """Run a chat in fresh processes: medians of ready, first token (s) and peak memory (bytes)."""
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", FIRST_TOKEN], check=True, capture_output=True, text=True)
        runs.append([float(word) for word in done.stdout.split()])
    ready, first, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    return {"ready_s": ready, "first_token_s": first, "peak_memory_mib": memory / 2**20}


def first_compile(parts: Parts) -> float:
    """Return the seconds that compiling every architecture takes, in an empty cache."""
    packs = [parts.lineup.base, parts.lineup.router, *parts.lineup.routable]
    builds = plan_builds(packs, cpu_target(), parts.config.precisions)
    with tempfile.TemporaryDirectory() as cache:
        return clock(lambda: ensure_artefacts(builds, Path(cache)))


def show(figures: dict[str, object]) -> None:
    """Print the table and the JSON line."""
    print(f"{'':<26}{'ours':>10}{'eager':>10}{'ratio':>8}")
    for batch in (1, 8):
        row = figures[f"batch_{batch}"]
        assert isinstance(row, dict)
        for name in ("prefill", "decode"):
            label = f"{name}, {batch} sequence{'s' if batch > 1 else ''}"
            print(f"{label:<26}{row[name]:>10.0f}{row[f'peer_{name}']:>10.0f}{row[f'{name}_ratio']:>8.2f}  tokens/s")
    for name, value in figures.items():
        if isinstance(value, (int, float)):
            print(f"{name:<26}{value:>10.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
