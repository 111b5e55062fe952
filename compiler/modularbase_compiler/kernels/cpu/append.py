"""Writing new rows into pages, in place: keys and values un-rotated, and hidden states."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_SERIAL_ROWS = 16


def append_kv(layers: int, heads: int, kv_heads: int, size: int) -> Any:
    """Make the kernel: pages [P, L, 2, K, 16*D] (updated), qkv [T, (H+2K)*D], slots [T], layer.

    A page of keys is [D, 16], so that attention reads 16 tokens as one vector; a page of values is [16, D].
    """
    width = (heads + 2 * kv_heads) * size

    @T.prim_func(s_tir=True)
    def append_kv(p_: T.handle, x_: T.handle, s_: T.handle, layer: T.int64) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        count, rows = T.int64(), T.int64()
        pages = T.match_buffer(p_, (count, layers, 2, kv_heads, PAGE * size), "float32")
        x = T.match_buffer(x_, (rows, width), "float32")
        slots = T.match_buffer(s_, (rows,), "int32")

        @T.inline
        def write(row):
            for h in T.serial(kv_heads):
                for d in T.serial(size):
                    pages[slots[row] // PAGE, layer, 0, h, d * PAGE + slots[row] % PAGE] = x[
                        row, (heads + h) * size + d
                    ]
                for d in T.serial(size // 16):
                    pages[slots[row] // PAGE, layer, 1, h, T.ramp(slots[row] % PAGE * size + d * 16, 1, 16)] = x[
                        row, T.ramp((heads + kv_heads + h) * size + d * 16, 1, 16)
                    ]

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    write(row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    write(row)

    return append_kv


def append_hidden(width: int) -> Any:
    """Make the kernel: pages [P, 16, E] (updated), hidden [T, E], slots [T]."""

    @T.prim_func(s_tir=True)
    def append_hidden(p_: T.handle, x_: T.handle, s_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        count, rows = T.int64(), T.int64()
        pages = T.match_buffer(p_, (count, PAGE, width), "float32")
        x = T.match_buffer(x_, (rows, width), "float32")
        slots = T.match_buffer(s_, (rows,), "int32")
        for row, i in T.grid(rows, width):
            with T.sblock("write"):
                pages[slots[row] // PAGE, slots[row] % PAGE, i] = x[row, i]

    return append_hidden
