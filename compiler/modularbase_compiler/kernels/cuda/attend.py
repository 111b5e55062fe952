"""Causal grouped-query attention over pages, RoPE applied as keys are read; a block is one (row, head).

Scores lie in shared memory in float32. Which thread sums which position is fixed, so a row's bits do not depend on
its batch.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import LOG2_E
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_THREADS = 128


def attend(layers: int, heads: int, kv_heads: int, size: int, positions: int, dtype: str) -> Any:
    """Make the kernel; see `graph.ops.attend` for the arguments."""
    shared, half = heads // kv_heads, size // 2
    width = (heads + 2 * kv_heads) * size
    span = -(-positions // _THREADS) * _THREADS
    scale = size**-0.5 * LOG2_E

    @T.prim_func(s_tir=True)
    def attend(
        x_: T.handle,
        p_: T.handle,
        t_: T.handle,
        s_: T.handle,
        l_: T.handle,
        c_: T.handle,
        v_: T.handle,
        layer: T.int64,
        o_: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows, count, batch, listed = T.int64(), T.int64(), T.int64(), T.int64()
        x = T.match_buffer(x_, (rows, width), dtype)
        pages = T.match_buffer(p_, (count, layers, 2, kv_heads, PAGE * size), dtype)
        table = T.match_buffer(t_, (positions // PAGE, size, PAGE), "float32")
        starts = T.match_buffer(s_, (batch,), "int32")
        lengths = T.match_buffer(l_, (batch,), "int32")
        context = T.match_buffer(c_, (batch,), "int32")
        visible = T.match_buffer(v_, (batch, listed), "int32")
        out = T.match_buffer(o_, (rows, heads * size), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for head in T.thread_binding(heads, thread="blockIdx.y"):
                for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("row"):
                        T.reads()
                        T.writes()
                        query = T.sblock_alloc_buffer((size,), "float32", scope="shared")
                        scores = T.sblock_alloc_buffer((span,), "float32", scope="shared")
                        parts = T.sblock_alloc_buffer((_THREADS,), "float32", scope="shared")
                        at = T.sblock_alloc_buffer((2,), "int32", scope="local")  # sequence, position
                        acc = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        weight = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        at[0] = 0
                        at[1] = -1  # a row of no sequence sees nothing
                        for b in T.serial(batch):
                            if starts[b] <= T.cast(row, "int32") and T.cast(row, "int32") < starts[b] + lengths[b]:
                                at[0] = T.cast(b, "int32")
                                at[1] = context[b] + T.cast(row, "int32") - starts[b]
                        for i in T.serial((half + _THREADS - 1) // _THREADS):
                            if i * _THREADS + t < half and at[1] >= 0:
                                query[i * _THREADS + t] = T.float32(scale) * (
                                    T.cast(x[row, head * size + i * _THREADS + t], "float32")
                                    * table[at[1] // PAGE, i * _THREADS + t, at[1] % PAGE]
                                    - T.cast(x[row, head * size + half + i * _THREADS + t], "float32")
                                    * table[at[1] // PAGE, half + i * _THREADS + t, at[1] % PAGE]
                                )
                                query[half + i * _THREADS + t] = T.float32(scale) * (
                                    T.cast(x[row, head * size + half + i * _THREADS + t], "float32")
                                    * table[at[1] // PAGE, i * _THREADS + t, at[1] % PAGE]
                                    + T.cast(x[row, head * size + i * _THREADS + t], "float32")
                                    * table[at[1] // PAGE, half + i * _THREADS + t, at[1] % PAGE]
                                )
                        T.evaluate(T.tvm_storage_sync("shared"))
                        acc[1] = T.float32(-3.0e38)
                        for i in T.serial((at[1] + _THREADS) // _THREADS):
                            # no shared memory is written under a condition: TVM puts barriers around the writes
                            acc[0] = T.float32(0)
                            if i * _THREADS + t <= at[1]:
                                for d in T.serial(half):
                                    acc[0] = acc[0] + query[d] * (
                                        T.cast(
                                            pages[
                                                visible[at[0], (i * _THREADS + t) // PAGE],
                                                layer,
                                                0,
                                                head // shared,
                                                d * PAGE + (i * _THREADS + t) % PAGE,
                                            ],
                                            "float32",
                                        )
                                        * table[(i * _THREADS + t) // PAGE, d, (i * _THREADS + t) % PAGE]
                                        - T.cast(
                                            pages[
                                                visible[at[0], (i * _THREADS + t) // PAGE],
                                                layer,
                                                0,
                                                head // shared,
                                                (half + d) * PAGE + (i * _THREADS + t) % PAGE,
                                            ],
                                            "float32",
                                        )
                                        * table[(i * _THREADS + t) // PAGE, half + d, (i * _THREADS + t) % PAGE]
                                    )
                                    acc[0] = acc[0] + query[half + d] * (
                                        T.cast(
                                            pages[
                                                visible[at[0], (i * _THREADS + t) // PAGE],
                                                layer,
                                                0,
                                                head // shared,
                                                (half + d) * PAGE + (i * _THREADS + t) % PAGE,
                                            ],
                                            "float32",
                                        )
                                        * table[(i * _THREADS + t) // PAGE, d, (i * _THREADS + t) % PAGE]
                                        + T.cast(
                                            pages[
                                                visible[at[0], (i * _THREADS + t) // PAGE],
                                                layer,
                                                0,
                                                head // shared,
                                                d * PAGE + (i * _THREADS + t) % PAGE,
                                            ],
                                            "float32",
                                        )
                                        * table[(i * _THREADS + t) // PAGE, half + d, (i * _THREADS + t) % PAGE]
                                    )
                            scores[i * _THREADS + t] = acc[0]
                            acc[1] = T.if_then_else(i * _THREADS + t <= at[1], T.max(acc[1], acc[0]), acc[1])
                        parts[t] = acc[1]
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for i in T.serial(_THREADS):
                            acc[1] = T.max(acc[1], parts[i])
                        T.evaluate(T.tvm_storage_sync("shared"))
                        acc[0] = T.float32(0)
                        for i in T.serial((at[1] + _THREADS) // _THREADS):
                            weight[0] = T.if_then_else(
                                i * _THREADS + t <= at[1],
                                T.exp2(scores[i * _THREADS + t] - acc[1]),
                                T.float32(0),
                            )
                            scores[i * _THREADS + t] = weight[0]
                            acc[0] = acc[0] + weight[0]
                        parts[t] = acc[0]
                        T.evaluate(T.tvm_storage_sync("shared"))
                        acc[1] = T.float32(0)
                        for i in T.serial(_THREADS):
                            acc[1] = acc[1] + parts[i]
                        for i in T.serial((size + _THREADS - 1) // _THREADS):
                            if i * _THREADS + t < size and at[1] >= 0:
                                acc[0] = T.float32(0)
                                for j in T.serial(at[1] + 1):
                                    acc[0] = acc[0] + scores[j] * T.cast(
                                        pages[
                                            visible[at[0], j // PAGE],
                                            layer,
                                            1,
                                            head // shared,
                                            j % PAGE * size + i * _THREADS + t,
                                        ],
                                        "float32",
                                    )
                                out[row, head * size + i * _THREADS + t] = T.cast(acc[0] / acc[1], dtype)

    return attend
