"""Which experts take which rows, and what they made summed up again: before and after the products of a mixture.

A row's experts are those of its greatest logits, its gates a softmax over them (Shazeer et al., 2017), as in
`graph.ops.choose`.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

_SERIAL_ROWS = 16  # below this, starting threads costs more than the rows


def route(experts: int, chosen: int) -> Any:
    """Make the kernel: logits [T, X] -> order [T k] int32, first [X+1] int32, gates [T k].

    Pair t * k + c is the c-th choice of row t. `order` lists pairs by expert, those of expert e from first[e] on.
    """

    @T.prim_func(s_tir=True)
    def route(l_: T.handle, o_: T.handle, f_: T.handle, g_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        logits = T.match_buffer(l_, (rows, experts), "float32")
        order = T.match_buffer(o_, (rows * chosen,), "int32")
        first = T.match_buffer(f_, (experts + 1,), "int32")
        gates = T.match_buffer(g_, (rows * chosen,), "float32")
        with T.sblock("all"):
            T.reads()
            T.writes()
            ids = T.sblock_alloc_buffer((rows * chosen,), "int32")
            left = T.sblock_alloc_buffer((experts,), "float32")  # logits, of those not chosen yet
            place = T.sblock_alloc_buffer((experts,), "int32")  # where an expert's next pair goes
            total = T.sblock_alloc_buffer((1,), "float32")
            for e in T.serial(experts):
                place[e] = 0
            for row in T.serial(rows):
                total[0] = T.float32(0)
                for e in T.serial(experts):
                    left[e] = logits[row, e]
                for c in T.serial(chosen):
                    ids[row * chosen + c] = 0
                    for e in T.serial(1, experts):
                        if left[e] > left[ids[row * chosen + c]]:
                            ids[row * chosen + c] = e
                    gates[row * chosen + c] = T.exp(left[ids[row * chosen + c]] - logits[row, ids[row * chosen]])
                    total[0] = total[0] + gates[row * chosen + c]
                    left[ids[row * chosen + c]] = T.min_value("float32")
                    place[ids[row * chosen + c]] = place[ids[row * chosen + c]] + 1
                for c in T.serial(chosen):
                    gates[row * chosen + c] = gates[row * chosen + c] / total[0]
            first[0] = 0
            for e in T.serial(experts):
                first[e + 1] = first[e] + place[e]
                place[e] = first[e]
            for pair in T.serial(rows * chosen):
                order[place[ids[pair]]] = T.cast(pair, "int32")
                place[ids[pair]] = place[ids[pair]] + 1

    return route


def combine(chosen: int, width: int) -> Any:
    """Make the kernel: gates [T k], parts [T k, E] -> y [T, E], sums in the order of choice; E is a multiple of 16."""

    @T.prim_func(s_tir=True)
    def combine(g_: T.handle, p_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        gates = T.match_buffer(g_, (rows * chosen,), "float32")
        parts = T.match_buffer(p_, (rows * chosen, width), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")

        @T.inline
        def add(row):
            for i in T.serial(width // 16):
                y[row, T.ramp(i * 16, 1, 16)] = (
                    T.broadcast(gates[row * chosen], 16) * parts[row * chosen, T.ramp(i * 16, 1, 16)]
                )
                for c in T.serial(1, chosen):
                    y[row, T.ramp(i * 16, 1, 16)] = (
                        y[row, T.ramp(i * 16, 1, 16)]
                        + T.broadcast(gates[row * chosen + c], 16) * parts[row * chosen + c, T.ramp(i * 16, 1, 16)]
                    )

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    add(row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    add(row)

    return combine
