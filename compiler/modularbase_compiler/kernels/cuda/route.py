"""Which experts take which rows, and what they made summed up again: before and after the products of a mixture.

A row's experts are those of its greatest logits, its gates a softmax over them (Shazeer et al., 2017), as in
`graph.ops.choose`.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

_THREADS = 128


def route(experts: int, chosen: int) -> Any:
    """Make the kernel: logits [T, X] float32 -> order [T k] int32, first [X+1] int32, gates [T k] float32.

    Pair t * k + c is the c-th choice of row t. `order` lists pairs by expert, those of expert e from first[e] on. One
    block does it all: some rows at once are chosen for, a row a thread, and listed, an expert a thread; the choice is
    made once to count and again to list, so that none of it has to be kept.
    """
    turns = experts // _THREADS + 1  # of a block's threads, one more than experts

    def pairs(rows: Any, span: Any) -> Any:
        """Return how many pairs a span of rows has."""
        return tirx.Cast("int32", tirx.min(rows - span * _THREADS, _THREADS)) * chosen

    @T.prim_func(s_tir=True)
    def route(l_: T.handle, o_: T.handle, f_: T.handle, g_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        logits = T.match_buffer(l_, (rows, experts), "float32")
        order = T.match_buffer(o_, (rows * chosen,), "int32")
        first = T.match_buffer(f_, (experts + 1,), "int32")
        gates = T.match_buffer(g_, (rows * chosen,), "float32")

        @T.inline
        def choose(ids, best, left, total, span, t):
            # `ids` is written by every thread, under no condition: TVM puts barriers around the writes
            for c in T.serial(chosen):
                best[c] = 0
            if span * _THREADS + t < rows:
                total[0] = T.float32(0)
                for e in T.serial(experts):
                    left[e] = logits[span * _THREADS + t, e]
                for c in T.serial(chosen):
                    for e in T.serial(1, experts):
                        if left[e] > left[best[c]]:
                            best[c] = e
                    gates[(span * _THREADS + t) * chosen + c] = T.exp(
                        left[best[c]] - logits[span * _THREADS + t, best[0]]
                    )
                    total[0] = total[0] + gates[(span * _THREADS + t) * chosen + c]
                    left[best[c]] = T.min_value("float32")
                for c in T.serial(chosen):
                    gates[(span * _THREADS + t) * chosen + c] = gates[(span * _THREADS + t) * chosen + c] / total[0]
            for c in T.serial(chosen):
                ids[t * chosen + c] = best[c]

        for _ in T.thread_binding(1, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                with T.sblock("all"):
                    T.reads()
                    T.writes()
                    ids = T.sblock_alloc_buffer((_THREADS * chosen,), "int32", scope="shared")
                    counts = T.sblock_alloc_buffer((turns * _THREADS,), "int32", scope="shared")
                    best = T.sblock_alloc_buffer((chosen,), "int32", scope="local")
                    left = T.sblock_alloc_buffer((experts,), "float32", scope="local")  # logits, of those not chosen
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    place = T.sblock_alloc_buffer((turns,), "int32", scope="local")  # where an expert's next pair goes
                    pick = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    for i in T.serial(turns):
                        place[i] = 0
                    for span in T.serial((rows + _THREADS - 1) // _THREADS):
                        T.evaluate(T.tvm_storage_sync("shared"))
                        choose(ids, best, left, total, span, t)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for i in T.serial(turns):
                            for pair in T.serial(pairs(rows, span)):
                                pick[0] = ids[pair]
                                if pick[0] == i * _THREADS + t:
                                    place[i] = place[i] + 1
                    for i in T.serial(turns):
                        counts[i * _THREADS + t] = place[i]
                    T.evaluate(T.tvm_storage_sync("shared"))
                    for i in T.serial(turns):
                        place[i] = 0
                        for e in T.serial(i * _THREADS + t):
                            place[i] = place[i] + counts[e]
                        if i * _THREADS + t <= experts:
                            first[i * _THREADS + t] = place[i]
                    for span in T.serial((rows + _THREADS - 1) // _THREADS):
                        T.evaluate(T.tvm_storage_sync("shared"))
                        choose(ids, best, left, total, span, t)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for i in T.serial(turns):
                            for pair in T.serial(pairs(rows, span)):
                                pick[0] = ids[pair]
                                if pick[0] == i * _THREADS + t:
                                    order[place[i]] = T.cast(span, "int32") * (_THREADS * chosen) + pair
                                    place[i] = place[i] + 1

    return route


def combine(chosen: int, width: int, dtype: str) -> Any:
    """Make the kernel: gates [T k] float32, parts [T k, E] -> y [T, E] of `dtype`, sums in the order of choice."""

    @T.prim_func(s_tir=True)
    def combine(g_: T.handle, p_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        gates = T.match_buffer(g_, (rows * chosen,), "float32")
        parts = T.match_buffer(p_, (rows * chosen, width), dtype)
        y = T.match_buffer(y_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for by in T.thread_binding(-(-width // _THREADS), thread="blockIdx.y"):
                for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("element"):
                        T.reads()
                        T.writes()
                        total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        if by * _THREADS + t < width:
                            total[0] = T.float32(0)
                            for c in T.unroll(chosen):
                                total[0] = total[0] + gates[row * chosen + c] * T.cast(
                                    parts[row * chosen + c, by * _THREADS + t], "float32"
                                )
                            y[row, by * _THREADS + t] = T.cast(total[0], dtype)

    return combine
