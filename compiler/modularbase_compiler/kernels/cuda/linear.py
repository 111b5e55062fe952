"""y = x @ W^T (+ bias) (+ residual), W by rows: tiles through shared memory, sums in float32.

A tile is 16 rows by 64 columns. Every element is summed over k in order by one thread, whatever the row count.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

_ROWS, _COLUMNS, _DEPTH = 16, 64, 32  # of a tile
_PITCH = _DEPTH + 2  # keeps threads that read one column of shared memory in different banks


def linear(n: int, k: int, *, bias: bool, residual: bool, dtype: str) -> Any:
    """Make the kernel: x [T, K], w [N, K], (bias [N]), (residual [T, N]) -> y [T, N], all of `dtype`."""

    @T.prim_func(s_tir=True)
    def linear(x_: T.handle, w_: T.handle, b_: T.handle, r_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, k), dtype)
        w = T.match_buffer(w_, (n, k), dtype)
        b = T.match_buffer(b_, (n,), dtype)
        r = T.match_buffer(r_, (rows, n), dtype)
        y = T.match_buffer(y_, (rows, n), dtype)
        for by in T.thread_binding((rows + _ROWS - 1) // _ROWS, thread="blockIdx.y"):
            for bx in T.thread_binding((n + _COLUMNS - 1) // _COLUMNS, thread="blockIdx.x"):
                for ty in T.thread_binding(16, thread="threadIdx.y"):
                    for tx in T.thread_binding(16, thread="threadIdx.x"):
                        with T.sblock("tile"):
                            T.reads()
                            T.writes()
                            xs = T.sblock_alloc_buffer((_ROWS * _PITCH,), dtype, scope="shared")
                            ws = T.sblock_alloc_buffer((_COLUMNS * _PITCH,), dtype, scope="shared")
                            acc = T.sblock_alloc_buffer((4,), "float32", scope="local")
                            for c in T.unroll(4):
                                acc[c] = T.float32(0)
                            for tile in T.serial((k + _DEPTH - 1) // _DEPTH):
                                for i in T.unroll(2):
                                    xs[(i * 8 + ty // 2) * _PITCH + ty % 2 * 16 + tx] = T.if_then_else(
                                        by * _ROWS + i * 8 + ty // 2 < rows and tile * _DEPTH + ty % 2 * 16 + tx < k,
                                        x[by * _ROWS + i * 8 + ty // 2, tile * _DEPTH + ty % 2 * 16 + tx],
                                        T.cast(T.float32(0), dtype),
                                    )
                                for i in T.unroll(8):
                                    ws[(i * 8 + ty // 2) * _PITCH + ty % 2 * 16 + tx] = T.if_then_else(
                                        bx * _COLUMNS + i * 8 + ty // 2 < n and tile * _DEPTH + ty % 2 * 16 + tx < k,
                                        w[bx * _COLUMNS + i * 8 + ty // 2, tile * _DEPTH + ty % 2 * 16 + tx],
                                        T.cast(T.float32(0), dtype),
                                    )
                                T.evaluate(T.tvm_storage_sync("shared"))
                                for j in T.serial(_DEPTH):
                                    for c in T.unroll(4):
                                        acc[c] = acc[c] + T.cast(xs[ty * _PITCH + j], "float32") * T.cast(
                                            ws[(c * 16 + tx) * _PITCH + j], "float32"
                                        )
                                T.evaluate(T.tvm_storage_sync("shared"))
                            for c in T.unroll(4):
                                if by * _ROWS + ty < rows and bx * _COLUMNS + c * 16 + tx < n:
                                    if bias:
                                        acc[c] = acc[c] + T.cast(b[bx * _COLUMNS + c * 16 + tx], "float32")
                                    if residual:
                                        acc[c] = acc[c] + T.cast(
                                            r[by * _ROWS + ty, bx * _COLUMNS + c * 16 + tx], "float32"
                                        )
                                    y[by * _ROWS + ty, bx * _COLUMNS + c * 16 + tx] = T.cast(acc[c], dtype)

    # the body never reads an absent bias or residual, so the parameter can go
    kept = (True, True, bias, residual, True)
    parameters = [item for item, keep in zip(linear.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, linear.body, linear.ret_type, linear.attrs)
