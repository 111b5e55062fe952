"""A long conversation against a short one: memory, disk, and how fast it is read and goes on.

Each length in a process of its own: DATA/long/books, as often as it takes, is read block by block with tiers; then 64
tokens at a time are decoded by turns after that length and after 2,048 tokens in the same process. Memory is RssAnon,
which leaves mapped files out, once with and once without the search index of cold pages; device bytes are what the
budget planned, the same for every length. Reading is held against plain prefill of the same tokens in calls of 2,048
without tiers: with the same window, and with a window that sees as many tokens as tiers do (recent ones in place of
recalled ones); in processor seconds too, of all threads together. Disk bytes a token are held against the float16 keys
and values of a token.

    python tests/bench/memory.py DATA [--lengths 100000 1000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modularbase_core.config import EngineConfig
from modularbase_core.context.page import PageTable
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.packs.catalog import discover
from modularbase_core.train.corpus import read_records
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence

SHORT = 2048
STEPS = 64
READ = 16_384
PIECE = 32 << 10
CHAT = "general_chat"


def main() -> None:
    """Run a child for each length; print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.data, options.only, options.rounds)))
        return
    out = {}
    for length in options.lengths:
        command = [sys.executable, __file__, str(options.data), "--only", str(length), "--rounds", str(options.rounds)]
        out[length] = one = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"{length:,} tokens", *(f"  {name:<52} {value:12,.3f}" for name, value in one.items()), sep="\n", flush=True
        )
    print(json.dumps(out))


def measure(data: Path, length: int, rounds: int) -> dict[str, float]:
    """Return the figures of one length, in this process."""
    parts = Parts(EngineConfig(session_bytes=16 << 30), discover(), None)
    engine = parts.engine()
    short, long = parts.sequence(), parts.sequence()
    text = tokens(parts, data)
    for part in _cut(text, SHORT):
        _read(engine, short, part)
    started = time.perf_counter()
    for part in _cut(text, length):
        _read(engine, long, part)
    seconds = time.perf_counter() - started
    assert long.tiers is not None
    long.tiers.flush()
    sizes = long.tiers.measure(long.table)
    anonymous = _rss_anon_bytes()
    cold = sum(sizes.cold_tokens.values())
    shapes = parts.page_shapes
    kv_bytes = 2 * shapes.layers * 2 * shapes.kv_heads * shapes.head_size
    decode = _decode(engine, {"long": long, "short": short}, rounds)
    out = {
        "RssAnon, MB": anonymous / 1e6,
        "RssAnon without the index, MB": (anonymous - sizes.index_bytes) / 1e6,
        "index, bytes a token": long.tiers.index_bytes_per_token,
        "device bytes planned, MB": parts.budget.planned_bytes / 1e6,
        "on disk, bytes a token": sizes.cold_bytes / cold,
        "on disk / float16 keys and values": sizes.cold_bytes / cold / kv_bytes,
        "on disk / float16 keys, values and hidden states": sizes.cold_bytes
        / cold
        / (kv_bytes + 2 * shapes.hidden_size),
        "read, tokens/s": length / seconds,
        "decode after 2,048, tokens/s": decode["short"],
        "decode after this length, tokens/s": decode["long"],
        "decode, this length / 2,048": decode["long"] / decode["short"],
    }
    engine.release(long)
    engine.release(short)
    return out | _reading(parts, engine, text, rounds)


def tokens(parts: Parts, data: Path) -> Iterator[int]:
    """Yield the tokens of the books, over and over; all of them are in memory from the start, for every length."""
    books = [record.text or "" for record in read_records(data / "long/books.jsonl.xz")]
    while True:
        for book in books:
            for first in range(0, len(book), PIECE):
                yield from parts.tokenizer.encode(book[first : first + PIECE])


def _cut(text: Iterator[int], count: int) -> Iterator[list[int]]:
    while count:
        part = [next(text) for _ in range(min(count, 4096))]
        count -= len(part)
        yield part


def _read(engine: Engine, sequence: Sequence, token_ids: list[int]) -> None:
    for _ in engine.read(sequence, token_ids):
        pass


def _reading(parts: Parts, engine: Engine, text: Iterator[int], rounds: int) -> dict[str, float]:
    """Read the same tokens with tiers and without, by turns; return ratios of the medians, and of processor seconds."""
    (token_ids,) = [[next(text) for _ in range(READ)]]
    window = parts.base.window
    wide = replace(window, recent_tokens=window.recent_tokens + window.recall_tokens)
    seconds: dict[str, list[float]] = {"tiers": [], "plain": [], "wide": []}
    worked: dict[str, list[float]] = {name: [] for name in seconds}
    for _ in range(rounds):
        for name, taken in seconds.items():
            sequence = parts.sequence() if name == "tiers" else Sequence(PageTable(wide if name == "wide" else window))
            started, before = time.perf_counter(), time.process_time()
            if name == "tiers":
                _read(engine, sequence, token_ids)
            else:
                _plain(engine, sequence, token_ids)
            taken.append(time.perf_counter() - started)
            if sequence.tiers is not None:
                sequence.tiers.flush()
            worked[name].append(time.process_time() - before)
            engine.release(sequence)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    work = {name: statistics.median(taken) for name, taken in worked.items()}
    return {
        "plain prefill, tokens/s": READ / median["plain"],
        "read / plain prefill": median["plain"] / median["tiers"],
        "read / plain prefill that sees as many tokens": median["wide"] / median["tiers"],
        "read / plain prefill, processor seconds": work["plain"] / work["tiers"],
        "the same that sees as many tokens / plain prefill": work["plain"] / work["wide"],
    }


def _plain(engine: Engine, sequence: Sequence, token_ids: list[int]) -> None:
    sequence.route = force([CHAT])
    with engine.slots.hold([CHAT]) as slots:
        (pack,) = (slot.content for slot in slots)
        assert pack is not None
        before, pack._window = pack._window, sequence.table.window
        for first in range(0, len(token_ids), SHORT):
            engine.understanding.ingest(sequence, token_ids[first : first + SHORT])
            engine.decoding.prefill(sequence, {CHAT: pack})
        pack._window = before


def _decode(engine: Engine, sequences: dict[str, Sequence], rounds: int) -> dict[str, float]:
    """Decode by turns; return tokens a second, the median of rounds that hold the end of a block now and then."""
    taken: dict[str, list[float]] = {name: [] for name in sequences}
    with engine.slots.hold([CHAT]) as slots:
        placed = {slot.pack_id or "": slot.content for slot in slots if slot.content is not None}
        for sequence in sequences.values():
            sequence.route = force([CHAT])
        for _ in range(rounds * 4):  # four rounds are a block
            for name, sequence in sequences.items():
                started = time.perf_counter()
                for step in range(STEPS):
                    engine.decoding.step([sequence], [100 + step], placed)
                taken[name].append(time.perf_counter() - started)
    return {name: STEPS * len(seconds) / sum(seconds) for name, seconds in taken.items()}


def _rss_anon_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
