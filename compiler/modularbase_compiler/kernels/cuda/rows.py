"""Kernels of one block a row: RMSNorm, a feed-forward's activation, and writing rows into pages."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_THREADS = 128


def rms_norm(width: int, epsilon: float, dtype: str) -> Any:
    """Make the kernel: x [T, E], w [E] -> y [T, E]; the mean is in float32 (Zhang and Sennrich, 2019)."""

    @T.prim_func(s_tir=True)
    def rms_norm(x_: T.handle, w_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), dtype)
        w = T.match_buffer(w_, (width,), dtype)
        y = T.match_buffer(y_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                with T.sblock("row"):
                    T.reads()
                    T.writes()
                    parts = T.sblock_alloc_buffer((_THREADS,), "float32", scope="shared")
                    acc = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    acc[0] = T.float32(0)
                    for i in T.serial((width + _THREADS - 1) // _THREADS):
                        if i * _THREADS + t < width:
                            acc[0] = acc[0] + T.cast(x[row, i * _THREADS + t], "float32") * T.cast(
                                x[row, i * _THREADS + t], "float32"
                            )
                    parts[t] = acc[0]
                    T.evaluate(T.tvm_storage_sync("shared"))
                    acc[0] = T.float32(0)
                    for i in T.serial(_THREADS):
                        acc[0] = acc[0] + parts[i]
                    acc[0] = T.float32(1) / T.sqrt(acc[0] / T.float32(width) + T.float32(epsilon))
                    for i in T.serial((width + _THREADS - 1) // _THREADS):
                        if i * _THREADS + t < width:
                            y[row, i * _THREADS + t] = T.cast(
                                T.cast(x[row, i * _THREADS + t], "float32")
                                * acc[0]
                                * T.cast(w[i * _THREADS + t], "float32"),
                                dtype,
                            )

    return rms_norm


def activation(width: int, form: str, dtype: str) -> Any:
    """Make the kernel: x [T, 2F] (gate, then up), or [T, F] without a gate -> y [T, F], in float32 between."""
    gated = form in GATED
    read = 2 * width if gated else width

    @T.prim_func(s_tir=True)
    def activation(x_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, read), dtype)
        y = T.match_buffer(y_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                for i in T.serial((width + _THREADS - 1) // _THREADS):
                    with T.sblock("element"):
                        T.reads()
                        T.writes()
                        if i * _THREADS + t < width:
                            if gated:
                                y[row, i * _THREADS + t] = T.cast(
                                    activated(T.cast(x[row, i * _THREADS + t], "float32"), form)
                                    * T.cast(x[row, width + i * _THREADS + t], "float32"),
                                    dtype,
                                )
                            else:
                                y[row, i * _THREADS + t] = T.cast(
                                    activated(T.cast(x[row, i * _THREADS + t], "float32"), form), dtype
                                )

    return activation


def append_kv(layers: int, heads: int, kv_heads: int, size: int, dtype: str) -> Any:
    """Make the kernel: pages [P, L, 2, K, 16*D] (updated), qkv [T, (H+2K)*D], slots [T], layer."""
    width, written = (heads + 2 * kv_heads) * size, kv_heads * size

    @T.prim_func(s_tir=True)
    def append_kv(p_: T.handle, x_: T.handle, s_: T.handle, layer: T.int64) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        count, rows = T.int64(), T.int64()
        pages = T.match_buffer(p_, (count, layers, 2, kv_heads, PAGE * size), dtype)
        x = T.match_buffer(x_, (rows, width), dtype)
        slots = T.match_buffer(s_, (rows,), "int32")
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                for i in T.serial((written + _THREADS - 1) // _THREADS):
                    with T.sblock("element"):
                        T.reads()
                        T.writes()
                        if i * _THREADS + t < written:
                            pages[
                                slots[row] // PAGE,
                                layer,
                                0,
                                (i * _THREADS + t) // size,
                                (i * _THREADS + t) % size * PAGE + slots[row] % PAGE,
                            ] = x[row, heads * size + i * _THREADS + t]
                            pages[
                                slots[row] // PAGE,
                                layer,
                                1,
                                (i * _THREADS + t) // size,
                                slots[row] % PAGE * size + (i * _THREADS + t) % size,
                            ] = x[row, (heads + kv_heads) * size + i * _THREADS + t]

    return append_kv


def append_hidden(width: int, dtype: str) -> Any:
    """Make the kernel: pages [P, 16, E] (updated), hidden [T, E], slots [T]."""

    @T.prim_func(s_tir=True)
    def append_hidden(p_: T.handle, x_: T.handle, s_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        count, rows = T.int64(), T.int64()
        pages = T.match_buffer(p_, (count, PAGE, width), dtype)
        x = T.match_buffer(x_, (rows, width), dtype)
        slots = T.match_buffer(s_, (rows,), "int32")
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                for i in T.serial((width + _THREADS - 1) // _THREADS):
                    with T.sblock("element"):
                        T.reads()
                        T.writes()
                        if i * _THREADS + t < width:
                            pages[slots[row] // PAGE, slots[row] % PAGE, i * _THREADS + t] = x[row, i * _THREADS + t]

    return append_hidden
