"""y = x @ W^T (+ bias) (+ residual), x and W quantised by groups of 32: see `graph.quantised.linear_groups`.

Tensor cores make a group's exact sums, for one row as for many. K is cut into eight slices; a slice's groups are added
in order, then the slices in order. Few rows give each warp of a block a slice, many walk one slice after the other:
a row has the same bits either way, in any company.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cuda.integers import (
    add_sums,
    copy_word,
    copy_words,
    load_scales,
    load_word,
    load_words,
    multiply,
    unpack,
    wait_copies,
)
from modularbase_core.device.metadata import group_bytes
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP

_FEW = 32  # rows for which weights are read once, as they come, and K is what warps share
_SLICES = 8
_MANY, _COLUMNS = 64, 128  # of a tile where there are more rows
_FILLED = 64  # such tiles keep most of a GPU busy; fewer leave more of it idle than reading weights again costs
_STAGE = 4  # groups of those rows that are in shared memory at once, and of weights that a lane holds ahead
_PITCH = _STAGE * GROUP + 16  # keeps the words that a warp reads at once in different banks


def linear_groups(
    n: int,
    k: int,
    bits: int,
    *,
    bias: bool = False,
    residual: bool = False,
    experts: int = 0,
    shared: int = 1,
    dtype: str,
) -> Any:
    """Make the kernel: q [T, K] int8, scale [T, G], w [ceil(N/32), G, bytes] uint8, ... -> y [T, N] of `dtype`.

    w: layout "t32q8" or "t32q4". bias [N] and residual [T, N] are of `dtype`.

    experts: so many matrices, one after the other in w, each for its own rows. Then order [P] int32 and first [X+1]
    int32 come last before y [P, N]: expert e makes the rows order[first[e]] .. order[first[e+1]] of y, row p of them
    from row p // shared of q. Matrices of experts without rows are not read.
    """
    blocks, groups, size = -(-n // 32), k // GROUP, group_bytes(bits)
    matrices, mixed = max(experts, 1), experts > 0
    few = max(_FEW, _FILLED // -(-n // _COLUMNS) * _MANY)  # rows
    words = bits  # of 4 bytes, of a group, that a lane holds
    of_slice = -(-groups // _SLICES)
    factor = 1.0 if bits == 8 else 1 / 16  # int4 comes 16 times as large; nothing is lost

    def tiles(rows: Any, tile: int) -> Any:
        """Bound the tiles of rows, of which every expert may begin one."""
        return tirx.floordiv(rows, tile) + tirx.min(rows, matrices) if mixed else tirx.floordiv(rows + tile - 1, tile)

    def pair(span: Any, order: Any, place: Any) -> Any:
        """Return the row of y that is at `place` in a tile; beyond the tile's end its last one."""
        at = span[0] + tirx.min(place, span[1] - 1)
        return tirx.Cast("int64", order[at] if mixed else at)

    def block_of(span: Any, bx: Any, warp: Any) -> Any:
        """Return a warp's 32 rows of w, of four that a block of many has; beyond the end the last ones."""
        return span[2] * blocks + tirx.min(bx * 4 + warp % 4, blocks - 1)

    def row(span: Any, order: Any, place: Any) -> Any:
        """Return the row of q that it is made from."""
        return tirx.floordiv(pair(span, order, place), shared)

    @T.prim_func(s_tir=True)
    def linear_groups(
        q_: T.handle,
        s_: T.handle,
        w_: T.handle,
        b_: T.handle,
        r_: T.handle,
        o_: T.handle,
        f_: T.handle,
        y_: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows, made = T.int64(), T.int64()
        q = T.match_buffer(q_, (rows, k), "int8")
        scale = T.match_buffer(s_, (rows, groups), "float32")
        w = T.match_buffer(w_, (matrices * blocks, groups, size), "uint8")
        b = T.match_buffer(b_, (n,), dtype)
        r = T.match_buffer(r_, (rows, n), dtype)
        order = T.match_buffer(o_, (made,), "int32")
        first = T.match_buffer(f_, (matrices + 1,), "int32")
        y = T.match_buffer(y_, (made if mixed else rows, n), dtype)

        @T.inline
        def find(span, index, tile):
            # of a tile: its first row, how many, whose they are
            if mixed:
                span[1] = 0
                span[3] = index
                for e in T.serial(experts):
                    if span[3] >= 0 and span[3] * tile < first[e + 1] - first[e]:
                        span[0] = first[e] + span[3] * tile
                        span[1] = T.min(first[e + 1] - span[0], tile)
                        span[2] = e
                    span[3] = span[3] - (first[e + 1] - first[e] + tile - 1) // tile
            else:
                span[0] = index * tile
                span[1] = T.cast(T.min(rows - T.cast(index, "int64") * tile, tile), "int32")
                span[2] = 0

        @T.inline
        def load(ws, factors, block, g, u, lane):
            for i in T.unroll(words // 4):
                T.evaluate(load_words(ws, u * words + i * 4, w[T.cast(block, "int64"), g, i * 512 + lane * 16]))
            T.evaluate(load_scales(factors, u * 4, w[T.cast(block, "int64"), g, size - 64 + lane // 4 * 8], factor))

        @T.inline
        def add(acc, at, ws, factors, u, qs, scales, v, whole, sums):
            # 32 rows of weights by 8 of q; acc[at..at+3]: 16 rows, the next four the others
            for half in T.unroll(2):
                if bits == 4:
                    T.evaluate(unpack(whole, ws, u * words + half * 2))
                    T.evaluate(multiply(sums, whole, 0, qs, v * 2))
                else:
                    T.evaluate(multiply(sums, ws, u * words + half * 4, qs, v * 2))
                T.evaluate(add_sums(acc, at + half * 4, sums, factors, u * 4 + half * 2, scales, v * 2))

        @T.inline
        def finish(total, at, column):
            # the order of additions is fixed: products, then bias, then residual
            if bias:
                total[0] = total[0] + T.cast(b[column], "float32")
            if residual:
                total[0] = total[0] + T.cast(r[at, column], "float32")
            y[at, column] = T.cast(total[0], dtype)

        @T.inline
        def copy(held, held_scales, own, stage, warp, lane):
            for i in T.unroll(2):
                if stage * _STAGE + lane % 8 // 2 < groups:
                    T.evaluate(
                        copy_words(
                            held,
                            (stage % 2 * _MANY + i * 32 + warp * 4 + lane // 8) * _PITCH + lane % 8 * 16,
                            q[own[i], stage * _STAGE * GROUP + lane % 8 * 16],
                        )
                    )
            if stage * _STAGE + lane % 4 < groups:
                T.evaluate(
                    copy_word(
                        held_scales,
                        (stage % 2 * _STAGE + lane % 4) * _MANY + warp * 8 + lane // 4,
                        scale[own[2], stage * _STAGE + lane % 4],
                    )
                )

        if (made if mixed else rows) <= few:
            for bx in T.thread_binding(blocks, thread="blockIdx.x"):
                for by in T.thread_binding(tiles(made if mixed else rows, _FEW), thread="blockIdx.y"):
                    for warp in T.thread_binding(_SLICES, thread="threadIdx.y"):
                        for lane in T.thread_binding(32, thread="threadIdx.x"):
                            with T.sblock("few"):
                                T.reads()
                                T.writes()
                                parts = T.sblock_alloc_buffer((_SLICES * 8 * 36,), "float32", scope="shared")
                                span = T.sblock_alloc_buffer((4,), "int32", scope="local")
                                ws = T.sblock_alloc_buffer((_STAGE * words,), "uint32", scope="local")
                                factors = T.sblock_alloc_buffer((_STAGE * 4,), "float32", scope="local")
                                qs = T.sblock_alloc_buffer((_STAGE * 2,), "uint32", scope="local")
                                scales = T.sblock_alloc_buffer((_STAGE * 2,), "float32", scope="local")
                                whole = T.sblock_alloc_buffer((4,), "uint32", scope="local")
                                sums = T.sblock_alloc_buffer((4,), "int32", scope="local")
                                acc = T.sblock_alloc_buffer((_FEW,), "float32", scope="local")
                                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                                find(span, T.cast(by, "int32"), _FEW)
                                if span[1] > 0:
                                    for i in T.unroll(_FEW):
                                        acc[i] = T.float32(0)
                                    for step in T.serial((of_slice + _STAGE - 1) // _STAGE):
                                        for u in T.unroll(_STAGE):
                                            if (
                                                step * _STAGE + u < of_slice
                                                and warp * of_slice + step * _STAGE + u < groups
                                            ):
                                                load(
                                                    ws,
                                                    factors,
                                                    span[2] * blocks + bx,
                                                    warp * of_slice + step * _STAGE + u,
                                                    u,
                                                    lane,
                                                )
                                        for j in T.unroll(_FEW // 8):
                                            if j * 8 < span[1]:
                                                for u in T.unroll(_STAGE):
                                                    if (
                                                        step * _STAGE + u < of_slice
                                                        and warp * of_slice + step * _STAGE + u < groups
                                                    ):
                                                        for i in T.unroll(2):
                                                            qs[u * 2 + i] = load_word(
                                                                q[
                                                                    row(span, order, j * 8 + lane // 4),
                                                                    (warp * of_slice + step * _STAGE + u) * GROUP
                                                                    + i * 16
                                                                    + lane % 4 * 4,
                                                                ]
                                                            )
                                                            scales[u * 2 + i] = scale[
                                                                row(span, order, j * 8 + lane % 4 * 2 + i),
                                                                warp * of_slice + step * _STAGE + u,
                                                            ]
                                                for u in T.unroll(_STAGE):
                                                    if (
                                                        step * _STAGE + u < of_slice
                                                        and warp * of_slice + step * _STAGE + u < groups
                                                    ):
                                                        add(acc, j * 8, ws, factors, u, qs, scales, u, whole, sums)
                                    for j in T.unroll(_FEW // 8):
                                        if j * 8 < span[1]:
                                            T.evaluate(T.tvm_storage_sync("shared"))
                                            for i in T.unroll(8):
                                                # lanes that write at once do so into different banks
                                                parts[
                                                    (warp * 8 + lane % 4 * 2 + i % 2) * 36 + i // 2 * 8 + lane // 4
                                                ] = acc[j * 8 + i]
                                            T.evaluate(T.tvm_storage_sync("shared"))
                                            total[0] = T.float32(0)
                                            for i in T.serial(_SLICES):
                                                total[0] = total[0] + parts[(i * 8 + warp) * 36 + lane]
                                            if j * 8 + warp < span[1] and bx * 32 + lane < n:
                                                finish(total, pair(span, order, j * 8 + warp), bx * 32 + lane)
        else:
            for bx in T.thread_binding(-(-n // _COLUMNS), thread="blockIdx.x"):
                for by in T.thread_binding(tiles(made if mixed else rows, _MANY), thread="blockIdx.y"):
                    for warp in T.thread_binding(8, thread="threadIdx.y"):
                        for lane in T.thread_binding(32, thread="threadIdx.x"):
                            with T.sblock("many"):
                                T.reads()
                                T.writes()
                                held = T.sblock_alloc_buffer((2 * _MANY * _PITCH,), "int8", scope="shared")
                                held_scales = T.sblock_alloc_buffer((2 * _STAGE * _MANY,), "float32", scope="shared")
                                span = T.sblock_alloc_buffer((4,), "int32", scope="local")
                                own = T.sblock_alloc_buffer((3,), "int64", scope="local")  # rows that it copies
                                ws = T.sblock_alloc_buffer((_STAGE * words,), "uint32", scope="local")
                                factors = T.sblock_alloc_buffer((_STAGE * 4,), "float32", scope="local")
                                qs = T.sblock_alloc_buffer((2,), "uint32", scope="local")
                                scales = T.sblock_alloc_buffer((2,), "float32", scope="local")
                                whole = T.sblock_alloc_buffer((4,), "uint32", scope="local")
                                sums = T.sblock_alloc_buffer((4,), "int32", scope="local")
                                acc = T.sblock_alloc_buffer((_MANY // 2,), "float32", scope="local")  # of the slice
                                done = T.sblock_alloc_buffer((_MANY // 2,), "float32", scope="local")  # before it
                                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                                find(span, T.cast(by, "int32"), _MANY)
                                if span[1] > 0:
                                    for i in T.unroll(2):
                                        own[i] = row(span, order, i * 32 + warp * 4 + lane // 8)
                                    own[2] = row(span, order, warp * 8 + lane // 4)
                                    for i in T.unroll(_MANY // 2):
                                        acc[i] = T.float32(0)
                                        done[i] = T.float32(0)
                                    copy(held, held_scales, own, 0, warp, lane)
                                    for u in T.unroll(min(_STAGE, groups)):
                                        load(ws, factors, block_of(span, bx, warp), u, u, lane)
                                    for stage in T.serial((groups + _STAGE - 1) // _STAGE):
                                        T.evaluate(wait_copies())
                                        T.evaluate(T.tvm_storage_sync("shared"))
                                        if (stage + 1) * _STAGE < groups:
                                            copy(held, held_scales, own, stage + 1, warp, lane)
                                        for u in T.unroll(_STAGE):
                                            if stage * _STAGE + u < groups:
                                                for j in T.unroll(_MANY // 16):
                                                    for i in T.unroll(2):
                                                        qs[i] = load_word(
                                                            held[
                                                                (stage % 2 * _MANY + warp // 4 * 32 + j * 8) * _PITCH
                                                                + lane // 4 * _PITCH
                                                                + u * GROUP
                                                                + i * 16
                                                                + lane % 4 * 4
                                                            ]
                                                        )
                                                        scales[i] = held_scales[
                                                            (stage % 2 * _STAGE + u) * _MANY
                                                            + warp // 4 * 32
                                                            + j * 8
                                                            + lane % 4 * 2
                                                            + i
                                                        ]
                                                    add(acc, j * 8, ws, factors, u, qs, scales, 0, whole, sums)
                                                if (stage * _STAGE + u + 1) % of_slice == 0:
                                                    for i in T.unroll(_MANY // 2):
                                                        done[i] = done[i] + acc[i]
                                                        acc[i] = T.float32(0)
                                                if (stage + 1) * _STAGE + u < groups:
                                                    load(
                                                        ws,
                                                        factors,
                                                        block_of(span, bx, warp),
                                                        (stage + 1) * _STAGE + u,
                                                        u,
                                                        lane,
                                                    )
                                    for i in T.unroll(_MANY // 2):
                                        if (
                                            warp // 4 * 32 + i // 8 * 8 + lane % 4 * 2 + i % 2 < span[1]
                                            and (bx * 4 + warp % 4) * 32 + i % 8 // 2 * 8 + lane // 4 < n
                                        ):
                                            total[0] = done[i] + acc[i]
                                            finish(
                                                total,
                                                pair(span, order, warp // 4 * 32 + i // 8 * 8 + lane % 4 * 2 + i % 2),
                                                (bx * 4 + warp % 4) * 32 + i % 8 // 2 * 8 + lane // 4,
                                            )

    # the body never reads what is absent, so its parameter can go
    kept = (True, True, True, bias, residual, mixed, mixed, True)
    parameters = [item for item, keep in zip(linear_groups.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, linear_groups.body, linear_groups.ret_type, linear_groups.attrs)
