"""Causal grouped-query attention over pages on tensor cores, RoPE applied as keys are read: how the work is cut.

A call of at most 32 rows: a block takes 16 (row, head) pairs of a kv head and 256 keys, a chunk a warp; its partial
goes to memory, and a second launch adds a pair's partials in order. So a long window uses many processors, and a row's
bits depend on no other row. Longer calls: a block takes 64 pairs and every key, and no partial is written. Both do the
same with a chunk (see `chunk`), so they differ by the order of float32 sums.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cuda.chunk import CHUNK, LOW, PAIRS, place_of, run, turning, weighing
from modularbase_compiler.kernels.cuda.fragments import WARP, copy
from modularbase_compiler.kernels.workspace import BLOCK_TOKENS, FEW_ROWS, partial_shape
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_WARPS = BLOCK_TOKENS // CHUNK
_THREADS = _WARPS * WARP
_PAGES = BLOCK_TOKENS // PAGE
_TILE = _WARPS * PAIRS  # pairs of a block of a longer call


def attend(layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
    """Make the kernel; see `graph.ops.attend` for the arguments, pages and rows in float16.

    A last argument, partials, is its workspace (see `partial_shape`). Each 16 pairs of a sequence and kv head read its
    keys and values once, 4 N D bytes, each 64 where rows are many; beside them the table, 4 N D bytes that stay in
    the L2 cache, and partials, 4 (D + 4) bytes a pair and 256 keys, written and read. 4 N D operations a pair.
    """
    shared, groups = heads // kv_heads, size // (8 * run(size))
    width, columns = (heads + 2 * kv_heads) * size, 8 * run(size)
    most = partial_shape(heads, size, positions)[0] // (FEW_ROWS * heads)  # blocks of keys
    turn_query, turn_keys = turning(size, shared)
    score, weigh, mix, gather = weighing(size)

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
        q_: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows, count, batch, listed = T.int64(), T.int64(), T.int64(), T.int64()
        x = T.match_buffer(x_, (rows, width), "float16")
        pages = T.match_buffer(p_, (count, layers, 2, kv_heads, PAGE * size), "float16")
        table = T.match_buffer(t_, (positions // PAGE, size, PAGE), "float32")
        starts = T.match_buffer(s_, (batch,), "int32")
        lengths = T.match_buffer(l_, (batch,), "int32")
        context = T.match_buffer(c_, (batch,), "int32")
        visible = T.match_buffer(v_, (batch, listed), "int32")
        out = T.match_buffer(o_, (rows, heads * size), "float16")
        partials = T.match_buffer(q_, partial_shape(heads, size, positions), "float32")

        @T.inline
        def find(place, seen, tile, pairs, first, t):
            # place: 0 sequence or -1, 1 the warp's first pair, 2 the sequence's pairs, 3 the last position that the
            # warp's pairs see, 4 that the block's see, 5 the sequence's first row; seen: this lane's two positions
            place[0] = -1
            place[1] = tile
            for b in T.serial(T.cast(batch, "int32")):
                if place[0] < 0:
                    if place[1] * pairs < lengths[b] * shared:
                        place[0] = b
                    else:
                        place[1] = place[1] - (lengths[b] * shared + pairs - 1) // pairs
            for i in T.unroll(3):
                place[2 + i] = -1
            for side in T.unroll(2):
                seen[side] = -1
            if place[0] >= 0:
                place[5] = starts[place[0]]
                place[2] = lengths[place[0]] * shared
                place[4] = context[place[0]] + (T.min(place[2], (place[1] + 1) * pairs) - 1) // shared
                place[1] = place[1] * pairs + first
                if place[1] < place[2]:
                    place[3] = context[place[0]] + (T.min(place[2], place[1] + PAIRS) - 1) // shared
                for side in T.unroll(2):
                    if place[1] + side * 8 + t % WARP // 4 < place[2]:
                        seen[side] = context[place[0]] + (place[1] + side * 8 + t % WARP // 4) // shared

        @T.inline
        def begin(query, acc, top, total, place, seen, head, t):
            turn_query(query, x, table, place[5], head, place[1] + t % WARP // 4, seen, t)
            for i in T.unroll(size // 2):
                acc[i] = T.float32(0)
            for side in T.unroll(2):
                top[side] = T.float32(LOW)
                total[side] = T.float32(0)

        @T.inline
        def find_page(page, place, at, last):
            page[0] = -1
            if at * PAGE <= last:
                page[0] = visible[place[0], at]

        @T.inline
        def weigh_values(scores, weights, acc, top, total, seen, factor, values, right, page, place, head, chunk, t):
            weigh(scores, weights, acc, top, total, seen, factor, chunk, t)
            find_page(page, place, chunk * 4 + t % 4, place[3])
            mix(acc, weights, values, right, pages, page[0], layer, head, chunk, place[3], t)

        @T.inline
        def add_warps(sums, bests, totals, acc, top, total, factor, place, head, block, t):
            # each warp's sums become relative to the block's greatest power, and are added in the order of warps
            for side in T.unroll(2):
                bests[t // WARP * PAIRS + side * 8 + t % WARP // 4] = top[side]
                totals[t // WARP * PAIRS + side * 8 + t % WARP // 4] = total[side]
            T.evaluate(T.tvm_storage_sync("shared"))
            for side in T.unroll(2):
                factor[0] = bests[side * 8 + t % WARP // 4]
                for warp in T.unroll(1, _WARPS):
                    factor[0] = T.max(factor[0], bests[warp * PAIRS + side * 8 + t % WARP // 4])
                factor[0] = T.exp2(top[side] - factor[0])
                for i in T.unroll(size // 4):
                    acc[i // 2 * 4 + side * 2 + i % 2] = acc[i // 2 * 4 + side * 2 + i % 2] * factor[0]
            for group in T.unroll(groups):
                for i in T.unroll(size // 2 // groups):
                    sums[(t // WARP * PAIRS + i % 4 // 2 * 8 + t % WARP // 4) * columns + place_of(size, i, t)] = acc[
                        group * (size // 2 // groups) + i
                    ]
                T.evaluate(T.tvm_storage_sync("shared"))
                for i in T.serial(PAIRS * columns // _THREADS):
                    factor[0] = T.float32(0)
                    for warp in T.unroll(_WARPS):
                        factor[0] = factor[0] + sums[warp * PAIRS * columns + i * _THREADS + t]
                    put(place, head, block, (i * _THREADS + t) // columns, group * columns + t % columns, factor[0])
                T.evaluate(T.tvm_storage_sync("shared"))
            factor[0] = bests[t % PAIRS]
            for warp in T.unroll(1, _WARPS):
                factor[0] = T.max(factor[0], bests[warp * PAIRS + t % PAIRS])
            factor[1] = T.float32(0)
            for warp in T.unroll(_WARPS):
                factor[1] = factor[1] + totals[warp * PAIRS + t % PAIRS] * T.exp2(
                    bests[warp * PAIRS + t % PAIRS] - factor[0]
                )
            if t < PAIRS:
                put(place, head, block, t, size, factor[0])
                put(place, head, block, t, size + 1, factor[1])

        @T.inline
        def put(place, head, block, pair, at, value):
            if place[1] + pair < place[2] and block * BLOCK_TOKENS <= context[place[0]] + (place[1] + pair) // shared:
                partials[
                    ((place[5] + (place[1] + pair) // shared) * heads + head * shared + (place[1] + pair) % shared)
                    * most
                    + block,
                    at,
                ] = value

        if rows <= FEW_ROWS:
            for tile in T.thread_binding(rows * shared // PAIRS + batch, thread="blockIdx.x"):
                for block in T.thread_binding((listed + _PAGES - 1) // _PAGES, thread="blockIdx.y"):
                    for head in T.thread_binding(kv_heads, thread="blockIdx.z"):
                        for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                            with T.sblock("few"):
                                T.reads()
                                T.writes()
                                sums = T.sblock_alloc_buffer((_TILE * columns,), "float32", scope="shared")
                                bests = T.sblock_alloc_buffer((_TILE,), "float32", scope="shared")
                                totals = T.sblock_alloc_buffer((_TILE,), "float32", scope="shared")
                                place = T.sblock_alloc_buffer((6,), "int32", scope="local")
                                seen = T.sblock_alloc_buffer((2,), "int32", scope="local")
                                page = T.sblock_alloc_buffer((1,), "int32", scope="local")
                                query = T.sblock_alloc_buffer((size,), "float16", scope="local")
                                keys = T.sblock_alloc_buffer((16,), "float16", scope="local")
                                angles = T.sblock_alloc_buffer((16,), "float32", scope="local")
                                right = T.sblock_alloc_buffer((32,), "float16", scope="local")
                                values = T.sblock_alloc_buffer((32,), "float16", scope="local")
                                weights = T.sblock_alloc_buffer((32,), "float16", scope="local")
                                scores = T.sblock_alloc_buffer((32,), "float32", scope="local")
                                acc = T.sblock_alloc_buffer((size // 2,), "float32", scope="local")
                                top = T.sblock_alloc_buffer((2,), "float32", scope="local")
                                total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                                factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                                chunk: T.let[T.int32] = T.cast(block, "int32") * _WARPS + t // WARP
                                find(place, seen, T.cast(tile, "int32"), PAIRS, 0, t)
                                if T.cast(block, "int32") * BLOCK_TOKENS <= place[4]:
                                    begin(query, acc, top, total, place, seen, head, t)
                                    if chunk * CHUNK <= place[3]:
                                        find_page(page, place, chunk * 4 + t % WARP // 8, place[3])
                                        for i in T.unroll(32):
                                            scores[i] = T.float32(0)
                                        for step in T.unroll(size // 16):
                                            turn_keys(
                                                right, keys, angles, pages, table, page[0], layer, head, chunk, step, t
                                            )
                                            score(scores, query, right, 0, 4, step)
                                        weigh_values(
                                            scores,
                                            weights,
                                            acc,
                                            top,
                                            total,
                                            seen,
                                            factor,
                                            values,
                                            right,
                                            page,
                                            place,
                                            head,
                                            chunk,
                                            t,
                                        )
                                        gather(total, factor)
                                    add_warps(
                                        sums,
                                        bests,
                                        totals,
                                        acc,
                                        top,
                                        total,
                                        factor,
                                        place,
                                        head,
                                        T.cast(block, "int32"),
                                        t,
                                    )
            for row in T.thread_binding(rows, thread="blockIdx.x"):
                for head in T.thread_binding(heads, thread="blockIdx.y"):
                    for t in T.thread_binding(size, thread="threadIdx.x"):
                        with T.sblock("add"):
                            T.reads()
                            T.writes()
                            at = T.sblock_alloc_buffer((1,), "int32", scope="local")
                            top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                            total = T.sblock_alloc_buffer((3,), "float32", scope="local")
                            at[0] = -1  # a row of no sequence sees nothing
                            for b in T.serial(T.cast(batch, "int32")):
                                if starts[b] <= T.cast(row, "int32") and T.cast(row, "int32") < starts[b] + lengths[b]:
                                    at[0] = context[b] + T.cast(row, "int32") - starts[b]
                            if at[0] >= 0:
                                top[0] = T.float32(LOW)
                                total[0] = T.float32(0)
                                total[1] = T.float32(0)
                                for block in T.serial(at[0] // BLOCK_TOKENS + 1):
                                    top[0] = T.max(top[0], partials[(row * heads + head) * most + block, size])
                                for block in T.serial(at[0] // BLOCK_TOKENS + 1):
                                    total[2] = T.exp2(partials[(row * heads + head) * most + block, size] - top[0])
                                    total[0] = total[0] + partials[(row * heads + head) * most + block, t] * total[2]
                                    total[1] = (
                                        total[1] + partials[(row * heads + head) * most + block, size + 1] * total[2]
                                    )
                                out[row, head * size + t] = T.cast(total[0] / total[1], "float16")
        else:
            for tile in T.thread_binding(rows * shared // _TILE + batch, thread="blockIdx.x"):
                for head in T.thread_binding(kv_heads, thread="blockIdx.y"):
                    for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                        with T.sblock("many"):
                            T.reads()
                            T.writes()
                            turned = T.sblock_alloc_buffer((CHUNK * size,), "float16", scope="shared")
                            place = T.sblock_alloc_buffer((6,), "int32", scope="local")
                            seen = T.sblock_alloc_buffer((2,), "int32", scope="local")
                            page = T.sblock_alloc_buffer((1,), "int32", scope="local")
                            query = T.sblock_alloc_buffer((size,), "float16", scope="local")
                            keys = T.sblock_alloc_buffer((16,), "float16", scope="local")
                            angles = T.sblock_alloc_buffer((16,), "float32", scope="local")
                            right = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            values = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            weights = T.sblock_alloc_buffer((32,), "float16", scope="local")
                            scores = T.sblock_alloc_buffer((32,), "float32", scope="local")
                            acc = T.sblock_alloc_buffer((size // 2,), "float32", scope="local")
                            top = T.sblock_alloc_buffer((2,), "float32", scope="local")
                            total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                            factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                            find(
                                place,
                                seen,
                                T.cast(tile, "int32"),
                                _TILE,
                                t // WARP * PAIRS,
                                t,
                            )
                            begin(query, acc, top, total, place, seen, head, t)
                            for chunk in T.serial((place[4] + CHUNK) // CHUNK):
                                T.evaluate(T.tvm_storage_sync("shared"))
                                find_page(page, place, chunk * 4 + t % WARP // 8, place[4])
                                for i in T.unroll((size // 16 + _WARPS - 1) // _WARPS):
                                    if i * _WARPS + t // WARP < size // 16:
                                        turn_keys(
                                            right,
                                            keys,
                                            angles,
                                            pages,
                                            table,
                                            page[0],
                                            layer,
                                            head,
                                            chunk,
                                            i * _WARPS + t // WARP,
                                            t,
                                        )
                                        for j in T.unroll(8):
                                            copy(
                                                turned[(((i * _WARPS + t // WARP) * 8 + j) * WARP + t % WARP) * 4],
                                                right[j * 4],
                                                8,
                                            )
                                T.evaluate(T.tvm_storage_sync("shared"))
                                if chunk * CHUNK <= place[3]:
                                    for i in T.unroll(32):
                                        scores[i] = T.float32(0)
                                    for step in T.unroll(size // 16):
                                        score(scores, query, turned, step * 8 * WARP * 4 + t % WARP * 4, WARP * 4, step)
                                    weigh_values(
                                        scores,
                                        weights,
                                        acc,
                                        top,
                                        total,
                                        seen,
                                        factor,
                                        values,
                                        right,
                                        page,
                                        place,
                                        head,
                                        chunk,
                                        t,
                                    )
                            gather(total, factor)
                            for side in T.unroll(2):
                                if seen[side] >= 0:
                                    for i in T.unroll(size // 4):
                                        out[
                                            place[5] + (place[1] + side * 8 + t % WARP // 4) // shared,
                                            (head * shared + (place[1] + side * 8 + t % WARP // 4) % shared) * size
                                            + place_of(size, i // 2 * 4 + i % 2, t),
                                        ] = T.cast(acc[i // 2 * 4 + side * 2 + i % 2] / total[side], "float16")

    return attend
