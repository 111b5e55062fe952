"""A mixture's chosen experts (Shazeer et al., 2017), float16 with float32 sums: four launches.

One block chooses, and lists the pairs of a row and a choice by expert. The two products take 16 columns by up to 32
pairs of one expert a block (see `tiles`), gates beside the ups that they multiply; then a row's parts are added in the
order of choice. So only chosen experts are read, each once for 32 of its pairs, and a row's bits depend on no other.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated
from modularbase_compiler.kernels.cuda.fragments import WARP
from modularbase_compiler.kernels.cuda.tiles import FEW_COLUMNS, FEW_ROWS, FEW_THREADS, PARTS, few_rows, few_sum

_THREADS = 256  # of the block that chooses: as many experts as there may be
_ROW_THREADS = 128


def moe(experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
    """Make the kernel: x [T, E], logits [T, X] float32, gate_up [X, 2F or F, E], down [X, E, F] -> y [T, E].

    The arguments after y are its workspace, see `mixture_shapes`. A pair takes 2 E (3 F), or 2 E (2 F), operations.
    """
    gated = activation in GATED
    projected = 2 * ffn if gated else ffn
    lanes = FEW_COLUMNS // 2 if gated else FEW_COLUMNS  # of a tile's columns, those that stay
    sum_up, sum_down = few_rows(width, apart=ffn if gated else 8), few_rows(ffn)

    @T.prim_func(s_tir=True)
    def moe(
        x_: T.handle,
        l_: T.handle,
        u_: T.handle,
        d_: T.handle,
        y_: T.handle,
        i_: T.handle,
        o_: T.handle,
        f_: T.handle,
        g_: T.handle,
        h_: T.handle,
        p_: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), "float16")
        logits = T.match_buffer(l_, (rows, experts), "float32")
        gate_up = T.match_buffer(u_, (experts, projected, width), "float16")
        down = T.match_buffer(d_, (experts, width, ffn), "float16")
        y = T.match_buffer(y_, (rows, width), "float16")
        ids = T.match_buffer(i_, (rows * chosen,), "int32")
        order = T.match_buffer(o_, (rows * chosen,), "int32")
        first = T.match_buffer(f_, (experts + 1,), "int32")
        gates = T.match_buffer(g_, (rows * chosen,), "float32")
        hidden = T.match_buffer(h_, (rows * chosen, ffn), "float16")
        made = T.match_buffer(p_, (rows * chosen, width), "float32")
        ups = T.decl_buffer((experts * projected, width), "float16", data=gate_up.data)
        downs = T.decl_buffer((experts * width, ffn), "float16", data=down.data)

        @T.inline
        def choose(left, total, row):
            for e in T.serial(experts):
                left[e] = logits[row, e]
            total[0] = T.float32(0)
            for c in T.serial(chosen):
                ids[row * chosen + c] = 0
                for e in T.serial(1, experts):
                    if left[e] > left[ids[row * chosen + c]]:
                        ids[row * chosen + c] = e
                gates[row * chosen + c] = T.exp(left[ids[row * chosen + c]] - logits[row, ids[row * chosen]])
                left[ids[row * chosen + c]] = T.min_value("float32")
                total[0] = total[0] + gates[row * chosen + c]
            for c in T.serial(chosen):
                gates[row * chosen + c] = gates[row * chosen + c] / total[0]

        @T.inline
        def find(place, places, divisor, tile, t):
            # place: 0 expert or -1, 1 the tile's first pair in `order`, 2 its pairs; places: see `few_rows`
            place[0] = -1
            place[1] = tile
            place[2] = 0
            for e in T.serial(experts):
                if place[0] < 0:
                    if place[1] * FEW_ROWS < first[e + 1] - first[e]:
                        place[0] = e
                    else:
                        place[1] = place[1] - (first[e + 1] - first[e] + FEW_ROWS - 1) // FEW_ROWS
            if place[0] >= 0:
                place[1] = first[place[0]] + place[1] * FEW_ROWS
                place[2] = T.min(FEW_ROWS, first[place[0] + 1] - place[1])
            for i in T.unroll(4):
                places[i] = -1
                if i * 8 + t % WARP // 4 < place[2]:
                    places[i] = order[place[1] + i * 8 + t % WARP // 4] // divisor

        for _bx in T.thread_binding(1, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                with T.sblock("choose"):
                    T.reads()
                    T.writes()
                    left = T.sblock_alloc_buffer((experts,), "float32", scope="local")  # logits, of those not chosen
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    place = T.sblock_alloc_buffer((2,), "int32", scope="local")
                    for i in T.serial((rows + _THREADS - 1) // _THREADS):
                        if i * _THREADS + t < rows:
                            choose(left, total, i * _THREADS + t)
                    T.evaluate(T.tvm_storage_sync("shared"))
                    # a thread an expert: how many pairs are of those before it, then which are its own
                    place[0] = 0
                    place[1] = 0
                    for pair in T.serial(T.cast(rows, "int32") * chosen):
                        if ids[pair] < t:
                            place[0] = place[0] + 1
                    if t < experts:
                        first[t] = place[0]
                    if t == 0:
                        first[experts] = T.cast(rows, "int32") * chosen
                    for pair in T.serial(T.cast(rows, "int32") * chosen):
                        if ids[pair] == t:
                            order[place[0] + place[1]] = pair
                            place[1] = place[1] + 1
        for by in T.thread_binding(rows * chosen // FEW_ROWS + T.min(rows * chosen, experts), thread="blockIdx.y"):
            for bx in T.thread_binding((ffn + lanes - 1) // lanes, thread="blockIdx.x"):
                for t in T.thread_binding(FEW_THREADS, thread="threadIdx.x"):
                    with T.sblock("up"):
                        T.reads()
                        T.writes()
                        parts = T.sblock_alloc_buffer((PARTS,), "float32", scope="shared")
                        acc = T.sblock_alloc_buffer((16,), "float32", scope="local")
                        weights = T.sblock_alloc_buffer((64,), "float16", scope="local")
                        terms = T.sblock_alloc_buffer((8,), "float16", scope="local")
                        places = T.sblock_alloc_buffer((4,), "int32", scope="local")
                        place = T.sblock_alloc_buffer((3,), "int32", scope="local")
                        total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        find(place, places, chosen, T.cast(by, "int32"), t)
                        if place[2] > 0:
                            sum_up(
                                parts,
                                acc,
                                weights,
                                terms,
                                x,
                                ups,
                                places,
                                place[0] * projected,
                                bx * lanes,
                                ffn,
                                place[2],
                                t,
                            )
                            for i in T.unroll(FEW_ROWS * lanes // FEW_THREADS):
                                if (i * FEW_THREADS + t) // lanes < place[2] and bx * lanes + t % lanes < ffn:
                                    few_sum(total, 0, parts, (i * FEW_THREADS + t) // lanes, t % lanes)
                                    if gated:
                                        few_sum(total, 1, parts, (i * FEW_THREADS + t) // lanes, lanes + t % lanes)
                                        total[0] = activated(total[0], activation) * total[1]
                                    else:
                                        total[0] = activated(total[0], activation)
                                    hidden[order[place[1] + (i * FEW_THREADS + t) // lanes], bx * lanes + t % lanes] = (
                                        T.cast(total[0], "float16")
                                    )
        for by in T.thread_binding(rows * chosen // FEW_ROWS + T.min(rows * chosen, experts), thread="blockIdx.y"):
            for bx in T.thread_binding((width + FEW_COLUMNS - 1) // FEW_COLUMNS, thread="blockIdx.x"):
                for t in T.thread_binding(FEW_THREADS, thread="threadIdx.x"):
                    with T.sblock("down"):
                        T.reads()
                        T.writes()
                        parts = T.sblock_alloc_buffer((PARTS,), "float32", scope="shared")
                        acc = T.sblock_alloc_buffer((16,), "float32", scope="local")
                        weights = T.sblock_alloc_buffer((64,), "float16", scope="local")
                        terms = T.sblock_alloc_buffer((8,), "float16", scope="local")
                        places = T.sblock_alloc_buffer((4,), "int32", scope="local")
                        place = T.sblock_alloc_buffer((3,), "int32", scope="local")
                        total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        find(place, places, 1, T.cast(by, "int32"), t)
                        if place[2] > 0:
                            sum_down(
                                parts,
                                acc,
                                weights,
                                terms,
                                hidden,
                                downs,
                                places,
                                place[0] * width,
                                bx * FEW_COLUMNS,
                                width,
                                place[2],
                                t,
                            )
                            for i in T.unroll(FEW_ROWS * FEW_COLUMNS // FEW_THREADS):
                                if i * 16 + t // FEW_COLUMNS < place[2] and bx * FEW_COLUMNS + t % FEW_COLUMNS < width:
                                    few_sum(total, 0, parts, i * 16 + t // FEW_COLUMNS, t % FEW_COLUMNS)
                                    made[
                                        order[place[1] + i * 16 + t // FEW_COLUMNS],
                                        bx * FEW_COLUMNS + t % FEW_COLUMNS,
                                    ] = total[0]
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_ROW_THREADS, thread="threadIdx.x"):
                with T.sblock("combine"):
                    T.reads()
                    T.writes()
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    for i in T.serial((width + _ROW_THREADS - 1) // _ROW_THREADS):
                        if i * _ROW_THREADS + t < width:
                            total[0] = T.float32(0)
                            for c in T.serial(chosen):
                                total[0] = (
                                    total[0] + gates[row * chosen + c] * made[row * chosen + c, i * _ROW_THREADS + t]
                                )
                            y[row, i * _ROW_THREADS + t] = T.cast(total[0], "float16")

    return moe
