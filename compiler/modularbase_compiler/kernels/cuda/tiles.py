"""Tiles of x @ W^T, both by rows, on tensor cores: of few rows, where weights are read once, and of many.

Few: 16 columns by up to 32 rows a block; its eight warps share the terms, and their sums are added in the order of
warps, so a row's bits depend neither on the number of rows nor on its place. Many: 64 x 64 a block, every warp 32 x 32,
32 terms at a time through shared memory.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any, Final

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cuda.fragments import OCTET, WARP, copy, multiply

FEW_ROWS: Final = 32
FEW_COLUMNS: Final = 16
FEW_THREADS: Final = 256
MANY: Final = 64  # rows, and columns, of a block's tile
MANY_THREADS: Final = 128

_DEPTH = 32  # terms of a step: four lanes' octets
_WARPS = FEW_THREADS // WARP
_AHEAD = 4  # steps whose weights a warp asks for before it multiplies: 64 bytes a lane are under way
_TILES = FEW_ROWS // 8
_PITCH = FEW_COLUMNS + 4  # puts what a warp stores at once into different banks
PARTS: Final = _WARPS * FEW_ROWS * _PITCH  # floats of shared memory


def loading(k: int) -> Any:
    """Make `load(to, at, matrix, row, first, present)`: eight terms of a row, zero where there are none."""

    @T.inline
    def load(to, at, matrix, row, first, present):
        to[T.ramp(at, 1, OCTET)] = T.broadcast(T.float16(0), OCTET)
        if k % OCTET == 0:
            if present and first < k:
                copy(to[at], matrix[row, first], 16)
        else:  # rows do not begin at multiples of 16 bytes
            for e in T.unroll(OCTET):
                if present and first + e < k:
                    to[at + e] = matrix[row, first + e]

    return load


def few_rows(k: int, apart: int = 8) -> Any:
    """Make `sum_few` for K terms; the second eight of a tile's columns lie `apart` from the first.

    sum_few(parts, acc, weights, terms, x, w, places, base, column, limit, count, t): after it, parts holds the sums of
    `count` rows and of columns column.. as `few_sum` reads them; W's row of column 0 is `base`. places: local, the row
    of x that this lane's column of each of four tiles is, or -1. limit: where columns end, of the first eight alone
    where the others lie elsewhere. acc: 16 float32, weights: 64 halves, terms: 8, local.
    """
    beside = 8 if apart == 8 else 0
    load = loading(k)

    @T.inline
    def sum_few(parts, acc, weights, terms, x, w, places, base, column, limit, count, t):
        for i in T.unroll(_TILES * 4):
            acc[i] = T.float32(0)
        for turn in T.serial((k + _DEPTH * _WARPS * _AHEAD - 1) // (_DEPTH * _WARPS * _AHEAD)):
            for u in T.unroll(_AHEAD):
                for side in T.unroll(2):
                    load(
                        weights,
                        u * 16 + side * OCTET,
                        w,
                        base + column + side * apart + t % WARP // 4,
                        ((turn * _AHEAD + u) * _WARPS + t // WARP) * _DEPTH + t % 4 * OCTET,
                        column + side * beside + t % WARP // 4 < limit,
                    )
            for u in T.unroll(_AHEAD):
                for tile in T.unroll(_TILES):
                    if tile * 8 < count:
                        load(
                            terms,
                            0,
                            x,
                            places[tile],
                            ((turn * _AHEAD + u) * _WARPS + t // WARP) * _DEPTH + t % 4 * OCTET,
                            places[tile] >= 0,
                        )
                        for part in T.unroll(2):
                            multiply(
                                acc[tile * 4],
                                weights[u * 16 + part * 4],
                                weights[u * 16 + OCTET + part * 4],
                                terms[part * 4],
                            )
        for tile in T.unroll(_TILES):
            for i in T.unroll(4):
                parts[(t // WARP * FEW_ROWS + tile * 8 + t % 4 * 2 + i % 2) * _PITCH + i // 2 * 8 + t % WARP // 4] = (
                    acc[tile * 4 + i]
                )
        T.evaluate(T.tvm_storage_sync("shared"))

    return sum_few


@T.inline
def few_sum(total, at, parts, row, column):
    """Add the warps' sums of one element of a tile of few rows, in their order, into total[at]."""
    total[at] = T.float32(0)
    for warp in T.unroll(_WARPS):
        total[at] = total[at] + parts[(warp * FEW_ROWS + row) * _PITCH + column]


def many_rows(k: int) -> Any:
    """Make `sum_many` for K terms.

    sum_many(acc, staged, left, right, xs, ws, x, w, row, column, rows, columns, t): acc [32] becomes a warp's sums, as
    `many_row` and `many_column` place them. row, column: where the tile begins; rows, columns: where the matrices end.
    staged, left, right: 32 halves each, local; xs, ws: 4096 halves of shared memory each, two steps of 64 rows by 32
    terms: one is read while the next is written.
    """
    load = loading(k)
    steps = -(-k // _DEPTH)

    @T.inline
    def fetch(staged, x, w, row, column, rows, columns, step, t):
        for i in T.unroll(2):
            load(
                staged,
                i * OCTET,
                x,
                row + i * 32 + t // 4,
                step * _DEPTH + t % 4 * OCTET,
                row + i * 32 + t // 4 < rows,
            )
            load(
                staged,
                (2 + i) * OCTET,
                w,
                column + i * 32 + t // 4,
                step * _DEPTH + t % 4 * OCTET,
                column + i * 32 + t // 4 < columns,
            )

    @T.inline
    def place(staged, xs, ws, step, t):
        # 64 bytes a row: what eight lanes read or write at once fills all banks, with no padding
        for i in T.unroll(2):
            copy(xs[step % 2 * MANY * _DEPTH + (i * 128 + t) * OCTET], staged[i * OCTET], 16)
            copy(ws[step % 2 * MANY * _DEPTH + (i * 128 + t) * OCTET], staged[(2 + i) * OCTET], 16)

    @T.inline
    def sum_many(acc, staged, left, right, xs, ws, x, w, row, column, rows, columns, t):
        for i in T.unroll(32):
            acc[i] = T.float32(0)
        fetch(staged, x, w, row, column, rows, columns, 0, t)
        place(staged, xs, ws, 0, t)
        T.evaluate(T.tvm_storage_sync("shared"))
        for step in T.serial(steps):
            fetch(staged, x, w, row, column, rows, columns, step + 1, t)
            for i in T.unroll(4):
                copy(
                    left[i * OCTET],
                    xs[step % 2 * MANY * _DEPTH + (t // 64 * 32 + i * 8 + t % WARP // 4) * _DEPTH + t % 4 * OCTET],
                    16,
                )
                copy(
                    right[i * OCTET],
                    ws[
                        step % 2 * MANY * _DEPTH + (t // WARP % 2 * 32 + i * 8 + t % WARP // 4) * _DEPTH + t % 4 * OCTET
                    ],
                    16,
                )
            for i in T.unroll(2):
                for j in T.unroll(4):
                    for part in T.unroll(2):
                        multiply(
                            acc[(i * 4 + j) * 4],
                            left[i * 16 + part * 4],
                            left[i * 16 + OCTET + part * 4],
                            right[j * OCTET + part * 4],
                        )
            place(staged, xs, ws, step + 1, t)
            T.evaluate(T.tvm_storage_sync("shared"))

    return sum_many


def many_row(t: Any, i: Any) -> Any:
    """Return the row, within its tile, of the i-th of 32 sums of thread t."""
    return t // 64 * 32 + i // 16 * 16 + i % 4 // 2 * 8 + t % WARP // 4


def many_column(t: Any, i: Any) -> Any:
    """Return the column, likewise."""
    return t // WARP % 2 * 32 + i // 4 % 4 * 8 + t % 4 * 2 + i % 2
