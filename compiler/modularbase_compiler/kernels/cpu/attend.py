"""Causal grouped-query attention over pages, float32: how the work is cut into tasks.

Decode, where every sequence has one row: a task is a row, a block of 256 keys and one kv head. Else: one kv head and
some rows of a sequence, which share each block's rotated keys. Blocks begin at the first key and are merged in order,
so a row's bits depend neither on its batch, nor on its chunk, nor on threads.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.partial import mixing, partial_floats
from modularbase_compiler.kernels.cpu.scores import BLOCK, SPAN, scoring
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_PAIRS = 144  # at least so many (row, head) pairs of a task: rotating a block then costs 2 % of scoring it
_KEPT = 15  # vectors that a tile of one row adds into, at most


def attend(layers: int, heads: int, kv_heads: int, size: int, positions: int, *, most: int) -> Any:
    """Make the kernel; see `graph.ops.attend` for the arguments. D is a multiple of 32.

    most: pairs of a tile; its scores against two pages fit the registers.
    """
    shared = heads // kv_heads  # query heads of a kv head
    few = most // 2
    task_rows = most * -(-_PAIRS // (most * shared))
    some = _divisor(shared, most)  # heads of a tile of one row
    kept = min(_KEPT, 2 * most) // some
    width = (heads + 2 * kv_heads) * size
    vectors = size // 16
    floats = partial_floats(size)
    tile_vectors, few_vectors, some_vectors = (_divisor(vectors, count) for count in (2, 4, kept))
    some_pages = _divisor(4, kept)
    rotate_query, rotate_block, score_rotated, score_pages = scoring(size, kv_heads)
    softmax, mix, begin, merge, finish = mixing(size)

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
        x = T.match_buffer(x_, (rows, width), "float32")
        pages = T.match_buffer(p_, (count, layers, 2, kv_heads, PAGE * size), "float32")
        table = T.match_buffer(t_, (positions // PAGE, size, PAGE), "float32")
        starts = T.match_buffer(s_, (batch,), "int32")
        lengths = T.match_buffer(l_, (batch,), "int32")
        context = T.match_buffer(c_, (batch,), "int32")
        visible = T.match_buffer(v_, (batch, listed), "int32")
        out = T.match_buffer(o_, (rows, heads * size), "float32")

        @T.inline
        def place_block(place, task, blocks):
            # place: 0 sequence, 1 block, 2 last page, 3 for `score_pages`, 4 position, 5 tokens seen, 6 row,
            # 7 first partial
            place[0] = T.cast(task // kv_heads // blocks, "int32")
            place[1] = T.cast(task // kv_heads % blocks, "int32")

        @T.inline
        def place_row(place, row, blocks):
            place[4] = context[place[0]] + row
            place[2] = place[4] // PAGE
            place[5] = T.min(SPAN, place[4] + 1 - place[1] * SPAN)
            place[6] = starts[place[0]] + row
            place[7] = (place[6] * T.cast(blocks, "int32") + place[1]) * heads

        @T.inline
        def place_tile(place, task, tiles):
            # place: 0 sequence, 1 tile within it, 2 last page, 3 rows, 4 first row's position, 5 first row, 6 kv head
            place[6] = T.cast(task // tiles, "int32")
            place[1] = T.cast(task % tiles, "int32")
            place[0] = -1
            for b in T.serial(batch):
                if place[0] < 0:
                    if place[1] * task_rows < lengths[b]:
                        place[0] = T.cast(b, "int32")
                    else:
                        place[1] = place[1] - (lengths[b] + task_rows - 1) // task_rows
            place[3] = 0
            place[2] = -1
            if place[0] >= 0:
                place[5] = starts[place[0]] + place[1] * task_rows
                place[3] = T.min(task_rows, lengths[place[0]] - place[1] * task_rows)
                place[4] = context[place[0]] + place[1] * task_rows
                place[2] = (place[4] + place[3] - 1) // PAGE

        @T.inline
        def attend_block(acc, turned, wide, narrow, query, scores, partial, place, head):
            for tile in T.serial(shared // some):
                score_pages(
                    acc,
                    turned,
                    scores,
                    query,
                    pages,
                    table,
                    visible,
                    place,
                    layer,
                    head,
                    tile * some,
                    (place[5] + PAGE - 1) // PAGE,
                    some,
                    some_pages,
                )
                for i in T.serial(some):
                    softmax(
                        wide,
                        narrow,
                        scores,
                        partial,
                        place[7] + head * shared + tile * some + i,
                        place[1] * SPAN,
                        (place[5] + PAGE - 1) // PAGE,
                        place[4],
                        i,
                    )
                mix(
                    acc,
                    scores,
                    pages,
                    visible,
                    partial,
                    place[0],
                    layer,
                    head,
                    place[1],
                    place[7] + head * shared + tile * some,
                    place[5],
                    some,
                    some_vectors,
                )

        @T.inline
        def attend_tile(
            acc,
            turned,
            wide,
            narrow,
            query,
            key,
            scores,
            partial,
            whole,
            place,
            tile,
            block,
            first,
            height,
            columns,
            parts,
        ):
            # tile: 0 its pairs, 1 tokens of the block that the last of them sees
            tile[0] = T.min(height, place[3] * shared - first)
            tile[1] = T.min(SPAN, place[4] + (first + tile[0] - 1) // shared + 1 - block * SPAN)
            if tile[1] > 0:
                score_rotated(acc, turned, scores, query, key, first, (tile[1] + PAGE - 1) // PAGE, height, columns)
                for i in T.serial(tile[0]):
                    softmax(
                        wide,
                        narrow,
                        scores,
                        partial,
                        i,
                        block * SPAN,
                        (tile[1] + PAGE - 1) // PAGE,
                        place[4] + (first + i) // shared,
                        i,
                    )
                mix(acc, scores, pages, visible, partial, place[0], layer, place[6], block, 0, tile[1], height, parts)
                for i in T.serial(tile[0]):
                    merge(wide, whole, first + i, partial, i)

        if rows == batch:
            with T.sblock("decode"):
                # inferred regions would name the locals, and equal kernels would no longer compare equal
                T.reads()
                T.writes()
                partials = T.sblock_alloc_buffer((rows * ((listed + BLOCK - 1) // BLOCK) * heads, floats), "float32")
                for task in T.parallel(batch * ((listed + BLOCK - 1) // BLOCK) * kv_heads):
                    with T.sblock("block"):
                        T.reads()
                        T.writes()
                        place = T.sblock_alloc_buffer((8,), "int32")
                        acc = T.sblock_alloc_buffer((_KEPT * 16,), "float32")
                        turned = T.sblock_alloc_buffer((4 * 32,), "float32")
                        wide = T.sblock_alloc_buffer((16,), "float32")
                        narrow = T.sblock_alloc_buffer((1,), "float32")
                        turn = T.sblock_alloc_buffer((size,), "float32")
                        query = T.sblock_alloc_buffer((shared * size,), "float32")
                        scores = T.sblock_alloc_buffer((some * SPAN,), "float32")
                        place_block(place, task, (listed + BLOCK - 1) // BLOCK)
                        for row in T.serial(lengths[place[0]]):
                            place_row(place, row, (listed + BLOCK - 1) // BLOCK)
                            if place[5] > 0:
                                rotate_query(
                                    query, turn, x, table, place[6], place[4], task % kv_heads * shared, 0, shared
                                )
                                attend_block(acc, turned, wide, narrow, query, scores, partials, place, task % kv_heads)
                for b in T.parallel(batch):
                    with T.sblock("merge"):
                        T.reads()
                        T.writes()
                        wide = T.sblock_alloc_buffer((48,), "float32")
                        narrow = T.sblock_alloc_buffer((1,), "float32")
                        whole = T.sblock_alloc_buffer((1, floats), "float32")
                        for row, i in T.grid(lengths[b], heads):
                            begin(whole, 0)
                            for block in T.serial((context[b] + row) // SPAN + 1):
                                merge(
                                    wide,
                                    whole,
                                    0,
                                    partials,
                                    ((starts[b] + row) * ((listed + BLOCK - 1) // BLOCK) + block) * heads + i,
                                )
                            finish(wide, narrow, whole, 0, out, starts[b] + row, i)
        else:
            for task in T.parallel(kv_heads * (rows // task_rows + batch)):
                with T.sblock("tiles"):
                    T.reads()
                    T.writes()
                    place = T.sblock_alloc_buffer((8,), "int32")
                    tile = T.sblock_alloc_buffer((2,), "int32")
                    acc = T.sblock_alloc_buffer((most * 2 * 16,), "float32")
                    turned = T.sblock_alloc_buffer((4 * 32,), "float32")
                    wide = T.sblock_alloc_buffer((48,), "float32")
                    narrow = T.sblock_alloc_buffer((1,), "float32")
                    turn = T.sblock_alloc_buffer((size,), "float32")
                    query = T.sblock_alloc_buffer(((task_rows * shared + most) * size,), "float32")
                    key = T.sblock_alloc_buffer((SPAN * size,), "float32")
                    scores = T.sblock_alloc_buffer((most * SPAN,), "float32")
                    partial = T.sblock_alloc_buffer((most, floats), "float32")
                    whole = T.sblock_alloc_buffer((task_rows * shared, floats), "float32")
                    place_tile(place, task, rows // task_rows + batch)
                    for row in T.serial(place[3]):
                        rotate_query(
                            query,
                            turn,
                            x,
                            table,
                            place[5] + row,
                            place[4] + row,
                            place[6] * shared,
                            row * shared,
                            shared,
                        )
                    # the last tile may have more pairs than there are
                    for i in T.serial(most * vectors):
                        query[T.ramp(place[3] * shared * size + i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
                    for i in T.serial(place[3] * shared):
                        begin(whole, i)
                    for block in T.serial(place[2] // BLOCK + 1):
                        rotate_block(key, pages, table, visible, place[0], layer, place[6], block, place[2])
                        for i in T.serial((place[3] * shared + most - few - 1) // most):
                            attend_tile(
                                acc,
                                turned,
                                wide,
                                narrow,
                                query,
                                key,
                                scores,
                                partial,
                                whole,
                                place,
                                tile,
                                block,
                                i * most,
                                most,
                                2,
                                tile_vectors,
                            )
                        # what remains, if half a tile takes it
                        if (place[3] * shared + most - 1) % most < few:
                            attend_tile(
                                acc,
                                turned,
                                wide,
                                narrow,
                                query,
                                key,
                                scores,
                                partial,
                                whole,
                                place,
                                tile,
                                block,
                                (place[3] * shared - 1) // most * most,
                                few,
                                4,
                                few_vectors,
                            )
                    for i in T.serial(place[3] * shared):
                        finish(wide, narrow, whole, i, out, place[5] + i // shared, place[6] * shared + i % shared)

    return attend


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return max(count for count in range(1, limit + 1) if number % count == 0)
