"""Paged attention on the CPU: our kernel against the plain page kernel, torch's SDPA, and what the machine could do.

Float32, one thread and its own seconds, context of 2,048 tokens, pages scattered over a pool. Calls go through the
layers of a model in turn, so that pages come from where they would in a chat: of Qwen2-0.5B's 24 layers from memory, of
nano's from the cache. Interleaved rounds, medians; ratios are medians of the rounds' own. Read:

- plain: tests/bench/plain_attend.py, the first kernel of this project;
- SDPA: torch's scaled_dot_product_attention, keys contiguous and rotated before: it neither gathers nor rotates; the
  better of shared and repeated keys, in decode with a group's heads as rows;
- limit: the longer of reading the pages once (at the rate of reading as many contiguous bytes as all layers have, over
  and over) and of the multiplications (at the rate of 12 independent vector accumulators). Nothing for softmax.

    taskset -c 1 python tests/bench/attention.py [--shapes qwen2 nano d128] [--rounds 15]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.target import host_target
from torch.nn.functional import scaled_dot_product_attention
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

sys.path.insert(0, str(Path(__file__).parent))
import plain_attend

from modularbase_core.device.executable import Device
from modularbase_core.device.target import cpu_target
from modularbase_core.graph.rotary import rotary_table

PAGE, POSITIONS = 16, 2048
SHAPES = {"qwen2": (14, 2, 64, 24), "nano": (4, 2, 64, 3), "d128": (32, 8, 128, 8)}
"""Query heads, kv heads, head size, layers."""
DECODED = (1, 2, 4, 8, 16, 32)
PREFILLED = ((256, 0), (256, 1024), (512, 0), (512, 1536))
"""New rows, tokens before them."""
POOL_BYTES = 512 << 20
"""Pages of a case are at most so much: a large batch has fewer layers."""


@dataclass(frozen=True)
class Case:
    """A call: sequences of `rows` new tokens each, after `context`."""

    shape: str
    batch: int
    rows: int
    context: int

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"decode {self.batch}" if self.rows == 1 else f"{self.rows} after {self.context:,}"

    @property
    def bytes(self) -> int:
        """Bytes of keys and values of a layer."""
        _, kv_heads, size, _ = SHAPES[self.shape]
        return self.batch * (self.context + self.rows) * 2 * kv_heads * size * 4

    @property
    def layers(self) -> int:
        """Layers that fit the pool."""
        return max(1, min(SHAPES[self.shape][3], POOL_BYTES // self.bytes))

    @property
    def flops(self) -> int:
        """Multiplications and additions of what is visible."""
        heads, _, size, _ = SHAPES[self.shape]
        return sum(4 * heads * size * (self.context + i + 1) for i in range(self.rows)) * self.batch


def main() -> None:
    """Measure and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    Device(threads=1)
    torch.set_num_threads(1)
    flops = multiplications()
    print(f"{flops / 1e9:.0f} GFLOP/s")
    print(f"{'':<7}{'':<16}" + "".join(f"{name:>11}" for name in ("ours", "plain", "SDPA", "limit")), end="")
    print("  plain/ours  SDPA/ours  of limit")
    figures = []
    for shape in options.shapes:
        decoded = [Case(shape, batch, 1, POSITIONS - 1) for batch in DECODED]
        for case in [*decoded, *(Case(shape, 1, rows, context) for rows, context in PREFILLED)]:
            figures.append(measure(case, options.rounds, flops))
            show(case, figures[-1])
    print(json.dumps({"flops": flops, "cases": figures}))


def show(case: Case, figures: dict[str, Any]) -> None:
    """Print a line of the table."""
    times = "".join(f"{figures[name]:>8.0f} us" for name in ("ours_us", "plain_us", "sdpa_us", "limit_us"))
    ratios = f"{figures['plain']:>12.2f}{figures['sdpa']:>11.2f}{100 * figures['of_limit']:>8.0f} %"
    print(f"{case.shape:<7}{case.name:<16}{times}{ratios}", flush=True)


def measure(case: Case, rounds: int, flops: float) -> dict[str, Any]:
    """Time the kernels in turn; return medians in microseconds, ratios, and the share of the limit."""
    heads, kv_heads, size, _ = SHAPES[case.shape]
    shape = (case.layers, heads, kv_heads, size, POSITIONS)
    target = cpu_target()
    ours = tvm.compile(CpuKernels(target.level).attend(*shape), host_target(target))
    plain = tvm.compile(plain_attend.attend(*shape), host_target(target))
    arguments, out = paged(case)
    turn = {name: itertools.cycle(range(case.layers)) for name in ("ours", "plain")}
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(*arguments, next(turn["ours"]), out),
        "plain": lambda: plain(*arguments, next(turn["plain"]), out),
        **{f"sdpa {name}": run for name, run in peers(case)},
    }
    for run in ways.values():
        run()
    calls = max(1, int(0.02 / clock(ways["plain"], 2)))
    times: dict[str, list[float]] = {name: [] for name in (*ways, "read")}
    read = reading(case.bytes * case.layers)
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(clock(run, calls))
        times["read"].append(read())
    best = min((name for name in ways if name.startswith("sdpa")), key=lambda name: statistics.median(times[name]))
    limits = [max(case.bytes * seconds, case.flops / flops) for seconds in times["read"]]

    def against(name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))

    medians = {"ours": times["ours"], "plain": times["plain"], "sdpa": times[best], "limit": limits}
    return {
        "shape": case.shape,
        "case": case.name,
        **{f"{name}_us": 1e6 * statistics.median(values) for name, values in medians.items()},
        "plain": against("plain"),
        "sdpa": against(best),
        "of_limit": statistics.median(a / b for a, b in zip(limits, times["ours"], strict=True)),
        "read_gb_s": 1e-9 / statistics.median(times["read"]),
    }


def paged(case: Case) -> tuple[list[Any], Any]:
    """Make a call's arguments, without the layer, and its output."""
    heads, kv_heads, size, _ = SHAPES[case.shape]
    generator = np.random.default_rng(0)
    listed = -(-(case.context + case.rows) // PAGE)
    pool = listed * case.batch
    pages = generator.standard_normal((pool, case.layers, 2, kv_heads, PAGE * size), np.float32)
    values = [
        generator.standard_normal((case.batch * case.rows, (heads + 2 * kv_heads) * size), np.float32),
        pages,
        rotary_table(POSITIONS, size, 10000.0),
        np.arange(case.batch, dtype=np.int32) * case.rows,
        np.full(case.batch, case.rows, np.int32),
        np.full(case.batch, case.context, np.int32),
        generator.permutation(pool).astype(np.int32).reshape(case.batch, listed),
    ]
    out = np.zeros((case.batch * case.rows, heads * size), np.float32)
    return [tvm.runtime.tensor(value) for value in values], tvm.runtime.tensor(out)


def peers(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give the ways of torch; layers in turn, as ours."""
    heads, kv_heads, size, _ = SHAPES[case.shape]
    total = case.context + case.rows
    keys, values = (torch.randn(case.layers, case.batch, kv_heads, total, size) for _ in range(2))
    query = torch.randn(case.batch, heads, case.rows, size)
    turn = itertools.cycle(range(case.layers))
    if case.rows == 1:
        grouped = query.view(case.batch, kv_heads, heads // kv_heads, size)

        def decode() -> object:
            layer = next(turn)
            return scaled_dot_product_attention(grouped, keys[layer], values[layer])

        yield "grouped", decode
        return
    mask = torch.ones(case.rows, total, dtype=torch.bool).tril(case.context) if case.context else None
    many = [tensor[:2].repeat_interleave(heads // kv_heads, 2) for tensor in (keys, values)]
    turn_many = itertools.cycle(range(len(many[0])))

    def shared() -> object:
        layer = next(turn)
        return scaled_dot_product_attention(
            query, keys[layer], values[layer], attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    def repeated() -> object:
        layer = next(turn_many)
        return scaled_dot_product_attention(
            query, many[0][layer], many[1][layer], attn_mask=mask, is_causal=mask is None
        )

    yield "shared", shared
    yield "repeated", repeated


def reading(size: int) -> Callable[[], float]:
    """Return what measures the seconds a byte of reading `size` contiguous bytes over and over."""

    @T.prim_func(s_tir=True)
    def add(a_: T.handle, b_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int64()
        a = T.match_buffer(a_, (n, 128), "float32")
        b = T.match_buffer(b_, (128,), "float32")
        for i in T.serial(n):
            with T.sblock("add"):
                T.reads()
                T.writes()
                for c in T.unroll(8):
                    b[T.ramp(c * 16, 1, 16)] = b[T.ramp(c * 16, 1, 16)] + a[i, T.ramp(c * 16, 1, 16)]

    kernel = tvm.compile(add, host_target(cpu_target()))
    data = tvm.runtime.tensor(np.ones((size // 512, 128), np.float32))
    total = tvm.runtime.tensor(np.zeros(128, np.float32))
    times = max(1, (32 << 20) // size)
    return lambda: clock(lambda: kernel(data, total), times) / size


def multiplications() -> float:
    """Measure the floating-point operations a second of a thread."""
    rounds, accumulators = 1 << 20, 12

    @T.prim_func(s_tir=True)
    def multiply(a_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        a = T.match_buffer(a_, (accumulators * 16,), "float32")
        for _ in T.serial(rounds):
            with T.sblock("multiply"):
                T.reads()
                T.writes()
                for c in T.unroll(accumulators):
                    a[T.ramp(c * 16, 1, 16)] = a[T.ramp(c * 16, 1, 16)] * T.broadcast(
                        T.float32(0.999), 16
                    ) + T.broadcast(T.float32(0.001), 16)

    kernel = tvm.compile(multiply, host_target(cpu_target()))
    data = tvm.runtime.tensor(np.ones(accumulators * 16, np.float32))
    seconds = min(clock(lambda: kernel(data), 1) for _ in range(10))
    return rounds * accumulators * 32 / seconds


def clock(work: Callable[[], object], times: int) -> float:
    """Return the seconds of a run of `work`; those of other processes on the core do not count."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


if __name__ == "__main__":
    main()
