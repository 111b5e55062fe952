"""y = x @ W^T (+ bias) (+ residual) in float32, W (float32 or float16) packed by 32 columns: [N/32, K, 32].

Every element is summed over k in order, whatever the number of rows, so a row's bits do not depend on its company.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import prefetch

_CHUNK = 48  # rows of one task: enough to amortise reading its columns of W from L2, a multiple of every row tile


def linear(
    n: int, k: int, *, bias: bool, residual: bool, stored: str, tile: tuple[int, int], ahead_bytes: int = 0
) -> Any:
    """Make the kernel: x [T, K], w [ceil(N/32), K, 32], (bias [N]), (residual [T, N]) -> y [T, N].

    stored: dtype of w. tile: rows and column blocks held in registers at once. ahead_bytes: how far ahead of what is
    read of w first it is prefetched (see `CpuKernels`), 0 for not at all.
    """
    blocks = -(-n // 32)
    tile_rows = tile[0]
    group = 4 if blocks % 4 == 0 else 2 if blocks % 2 == 0 else 1  # column blocks of a task
    tile_blocks = min(tile[1], group)
    groups = blocks // group
    whole = n % 32 == 0
    accumulators = max(tile_rows * tile_blocks, 2 * group) * 16
    column_bytes = 64 if stored == "float16" else 128

    @T.prim_func(s_tir=True)
    def linear(x_: T.handle, w_: T.handle, b_: T.handle, r_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, k), "float32")
        w = T.match_buffer(w_, (blocks, k, 32), stored)
        b = T.match_buffer(b_, (n,), "float32")
        r = T.match_buffer(r_, (rows, n), "float32")
        y = T.match_buffer(y_, (rows, n), "float32")

        @T.inline
        def finish(acc, edge, row, column, i):
            # the order of additions is fixed: products, then bias, then residual
            if whole:
                if bias:
                    acc[T.ramp(i * 16, 1, 16)] = acc[T.ramp(i * 16, 1, 16)] + b[T.ramp(column, 1, 16)]
                if residual:
                    acc[T.ramp(i * 16, 1, 16)] = acc[T.ramp(i * 16, 1, 16)] + r[row, T.ramp(column, 1, 16)]
                y[row, T.ramp(column, 1, 16)] = acc[T.ramp(i * 16, 1, 16)]
            else:
                # `edge` is a buffer apart, so that indexing it by a variable does not push `acc` out of registers
                edge[T.ramp(0, 1, 16)] = acc[T.ramp(i * 16, 1, 16)]
                for lane in T.serial(16):
                    if column + lane < n:
                        if bias:
                            edge[lane] = edge[lane] + b[column + lane]
                        if residual:
                            edge[lane] = edge[lane] + r[row, column + lane]
                        y[row, column + lane] = edge[lane]

        @T.inline
        def add(acc, row, block, j, half, height, width):
            for c in T.unroll(width):
                for i in T.unroll(height):
                    acc[T.ramp((i * width + c) * 16, 1, 16)] = acc[T.ramp((i * width + c) * 16, 1, 16)] + T.broadcast(
                        x[row + i, j], 16
                    ) * T.cast(w[block + c, j, T.ramp(half * 16, 1, 16)], "float32x16")

        @T.inline
        def multiply(left, right, edge, row, block, height, width, fresh):
            for i in T.unroll(height * width):
                left[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
                right[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
            for j in T.serial(k):
                if ahead_bytes > 0 and fresh:
                    for c in T.unroll(width):
                        for line in T.unroll(column_bytes // 64):
                            T.evaluate(prefetch(w[block + c, j, (ahead_bytes + line * 64) * 32 // column_bytes]))
                add(left, row, block, j, 0, height, width)
                add(right, row, block, j, 1, height, width)
            for i in T.unroll(height):
                for c in T.unroll(width):
                    finish(left, edge, row + i, (block + c) * 32, i * width + c)
                    finish(right, edge, row + i, (block + c) * 32 + 16, i * width + c)

        for task in T.parallel(groups * ((rows + _CHUNK - 1) // _CHUNK)):
            with T.sblock("task"):
                # inferred regions would name the locals below, and equal kernels would no longer compare equal
                T.reads()
                T.writes()
                # the left and the right half of a block's columns: below 1 KB each they stay in registers
                left = T.sblock_alloc_buffer((accumulators,), "float32")
                right = T.sblock_alloc_buffer((accumulators,), "float32")
                edge = T.sblock_alloc_buffer((16,), "float32")
                span = T.sblock_alloc_buffer((3,), "int64")  # first row, after tiles, after pairs
                span[0] = (task // groups) * _CHUNK
                span[1] = span[0] + T.min(T.int64(_CHUNK), rows - span[0]) // tile_rows * tile_rows
                span[2] = span[1] + (T.min(span[0] + _CHUNK, rows) - span[1]) // 2 * 2
                for c in T.serial(group // tile_blocks):
                    for t in T.serial((span[1] - span[0]) // tile_rows):
                        multiply(
                            left,
                            right,
                            edge,
                            span[0] + t * tile_rows,
                            task % groups * group + c * tile_blocks,
                            tile_rows,
                            tile_blocks,
                            t == 0,
                        )
                for t in T.serial((span[2] - span[1]) // 2):
                    multiply(left, right, edge, span[1] + t * 2, task % groups * group, 2, group, span[1] + t == 0)
                for t in T.serial(T.min(span[0] + _CHUNK, rows) - span[2]):
                    multiply(left, right, edge, span[2] + t, task % groups * group, 1, group, span[2] == 0)

    # the body never reads an absent bias or residual, so the parameter can go
    kept = (True, True, bias, residual, True)
    parameters = [item for item, keep in zip(linear.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, linear.body, linear.ret_type, linear.attrs)
