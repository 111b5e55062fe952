"""Kernels that do nothing but read memory, or multiply bytes in registers: the limits that others are held against."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from modularbase_compiler.kernels.cpu.dot import products
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_core.device.target import cpu_target

_CHAINS = 8  # products under way at once


def read(threads: int) -> Any:
    """Make the kernel: memory [threads, lines, 64] uint8 -> sums [threads, 16]."""

    @T.prim_func(s_tir=True)
    def read(m_: T.handle, s_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        lines = T.int64()
        memory = T.match_buffer(m_, (threads, lines, 64), "uint8")
        sums = T.match_buffer(s_, (threads, 16), "int32")
        for thread in T.parallel(threads):
            with T.sblock("thread"):
                T.reads()
                T.writes()
                total = T.sblock_alloc_buffer((_CHAINS * 16,), "int32")
                for i in T.unroll(_CHAINS):
                    total[T.ramp(i * 16, 1, 16)] = T.broadcast(0, 16)
                for line in T.serial(lines // _CHAINS):
                    for i in T.unroll(_CHAINS):
                        total[T.ramp(i * 16, 1, 16)] = total[T.ramp(i * 16, 1, 16)] + T.reinterpret(
                            memory[thread, line * _CHAINS + i, T.ramp(0, 1, 64)], dtype="int32x16"
                        )
                for i in T.serial(1, _CHAINS):
                    total[T.ramp(0, 1, 16)] = total[T.ramp(0, 1, 16)] + total[T.ramp(i * 16, 1, 16)]
                sums[thread, T.ramp(0, 1, 16)] = total[T.ramp(0, 1, 16)]

    return read


def multiply(threads: int) -> Any:
    """Make the kernel: rounds -> sums [threads, 16], after rounds times 8 products of 64 bytes."""
    target = cpu_target()
    found = products(target.level, target.features)
    lanes, chains = found.lanes, _CHAINS * 16 // found.lanes

    def dot(sums: Any, seed: Any) -> Any:
        weights = tirx.reinterpret(f"uint8x{4 * lanes}", tirx.Broadcast(seed, lanes))
        return found.dot(sums, weights, tirx.reinterpret(f"int8x{4 * lanes}", tirx.Broadcast(seed, lanes)))

    @T.prim_func(s_tir=True)
    def multiply(rounds: T.int64, s_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        sums = T.match_buffer(s_, (threads, 16), "int32")
        for thread in T.parallel(threads):
            with T.sblock("thread"):
                T.reads()
                T.writes()
                total = T.sblock_alloc_buffer((chains * lanes,), "int32")
                for i in T.unroll(chains):
                    total[T.ramp(i * lanes, 1, lanes)] = T.broadcast(sums[thread, i % 16], lanes)
                for _ in T.serial(rounds):
                    for i in T.unroll(chains):
                        total[T.ramp(i * lanes, 1, lanes)] = dot(total[T.ramp(i * lanes, 1, lanes)], sums[thread, 0])
                for i in T.serial(1, chains):
                    total[T.ramp(0, 1, lanes)] = total[T.ramp(0, 1, lanes)] + total[T.ramp(i * lanes, 1, lanes)]
                sums[thread, T.ramp(0, 1, lanes)] = total[T.ramp(0, 1, lanes)]

    return multiply
