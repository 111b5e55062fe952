"""y = x @ W^T (+ bias) (+ residual), W by rows, float16 with float32 sums, on tensor cores (see `tiles`).

A call of at most 32 rows reads W once, 2 N K bytes, and is bound by that; one of more reads W once for every 64 rows
and x once for every 64 columns: 2 T N K operations over N K T / 16 bytes, most of them from the L2 cache.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cuda.fragments import WARP
from modularbase_compiler.kernels.cuda.tiles import (
    FEW_COLUMNS,
    FEW_ROWS,
    FEW_THREADS,
    MANY,
    MANY_THREADS,
    PARTS,
    few_rows,
    few_sum,
    many_column,
    many_row,
    many_rows,
)


def linear(n: int, k: int, *, bias: bool, residual: bool) -> Any:
    """Make the kernel: x [T, K], w [N, K], (bias [N]), (residual [T, N]) -> y [T, N], all float16."""
    sum_few, sum_many = few_rows(k), many_rows(k)

    @T.prim_func(s_tir=True)
    def linear(x_: T.handle, w_: T.handle, b_: T.handle, r_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, k), "float16")
        w = T.match_buffer(w_, (n, k), "float16")
        b = T.match_buffer(b_, (n,), "float16")
        r = T.match_buffer(r_, (rows, n), "float16")
        y = T.match_buffer(y_, (rows, n), "float16")

        @T.inline
        def finish(total, at, row, column):
            if row < T.cast(rows, "int32") and column < n:
                if bias:
                    total[at] = total[at] + T.cast(b[column], "float32")
                if residual:
                    total[at] = total[at] + T.cast(r[row, column], "float32")
                y[row, column] = T.cast(total[at], "float16")

        if rows <= FEW_ROWS:
            for bx in T.thread_binding((n + FEW_COLUMNS - 1) // FEW_COLUMNS, thread="blockIdx.x"):
                for t in T.thread_binding(FEW_THREADS, thread="threadIdx.x"):
                    with T.sblock("few"):
                        T.reads()
                        T.writes()
                        parts = T.sblock_alloc_buffer((PARTS,), "float32", scope="shared")
                        acc = T.sblock_alloc_buffer((16,), "float32", scope="local")
                        weights = T.sblock_alloc_buffer((64,), "float16", scope="local")
                        terms = T.sblock_alloc_buffer((8,), "float16", scope="local")
                        places = T.sblock_alloc_buffer((4,), "int32", scope="local")
                        total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        for tile in T.unroll(4):
                            places[tile] = tile * 8 + t % WARP // 4
                            if places[tile] >= T.cast(rows, "int32"):
                                places[tile] = -1
                        sum_few(
                            parts,
                            acc,
                            weights,
                            terms,
                            x,
                            w,
                            places,
                            0,
                            bx * FEW_COLUMNS,
                            n,
                            T.cast(rows, "int32"),
                            t,
                        )
                        for i in T.unroll(FEW_ROWS * FEW_COLUMNS // FEW_THREADS):
                            if i * 16 < T.cast(rows, "int32"):
                                few_sum(total, 0, parts, i * 16 + t // FEW_COLUMNS, t % FEW_COLUMNS)
                                finish(total, 0, i * 16 + t // FEW_COLUMNS, bx * FEW_COLUMNS + t % FEW_COLUMNS)
        else:
            for by in T.thread_binding((rows + MANY - 1) // MANY, thread="blockIdx.y"):
                for bx in T.thread_binding((n + MANY - 1) // MANY, thread="blockIdx.x"):
                    for t in T.thread_binding(MANY_THREADS, thread="threadIdx.x"):
                        with T.sblock("many"):
                            T.reads()
                            T.writes()
                            xs = T.sblock_alloc_buffer((4096,), "float16", scope="shared")
                            ws = T.sblock_alloc_buffer((4096,), "float16", scope="shared")
                            acc = T.sblock_alloc_buffer((32,), "float32", scope="local")
                            staged = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            left = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            right = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            sum_many(
                                acc,
                                staged,
                                left,
                                right,
                                xs,
                                ws,
                                x,
                                w,
                                T.cast(by, "int32") * MANY,
                                bx * MANY,
                                T.cast(rows, "int32"),
                                n,
                                t,
                            )
                            for i in T.unroll(32):
                                finish(
                                    acc, i, T.cast(by, "int32") * MANY + many_row(t, i), bx * MANY + many_column(t, i)
                                )

    # the body never reads an absent bias or residual, so the parameter can go
    kept = (True, True, bias, residual, True)
    parameters = [item for item, keep in zip(linear.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, linear.body, linear.ret_type, linear.attrs)
