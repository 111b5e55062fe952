"""The peer of `attention.py`: the first kernel of this project, the plain page kernel, as it was.

A task is one sequence, one kv head and some 16 (row, head) pairs: each page of keys is rotated for them into memory,
all their scores are kept, one softmax goes over them, and nothing is fetched ahead.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from modularbase_compiler.kernels.cpu.vector import LOG2_E, exp2, fold
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_PAIRS = 16  # (row, head) pairs of a task: rotating a page then costs an eighth of scoring it
_SCORED = 8  # pairs scored at once, against two pages: 16 accumulators
_LEAST = -3.0e38  # below every score, and finite


def attend(layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
    """Make the kernel; see `graph.ops.attend` for the arguments. D is a multiple of 32."""
    shared = heads // kv_heads  # query heads of a kv head
    tile = max(1, _PAIRS // shared)  # query rows of a task
    pairs = -(-tile * shared // _SCORED) * _SCORED
    width = (heads + 2 * kv_heads) * size
    half, vectors = size // 2, size // 16
    mixed = max(1, 16 // vectors)  # pairs whose outputs are summed at once: 16 accumulators
    span = positions + 2 * PAGE  # scores of a pair, in whole pairs of pages
    scale = size**-0.5 * LOG2_E
    greater, add = tirx.max, lambda a, b: a + b

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
        def place(at, task):
            # at: 0 tile within its sequence, 1 sequence, 2 first row, 3 rows, 4 first row's position, 5 pages
            at[0] = T.cast(task % (rows // tile + batch), "int32")
            at[1] = -1
            for b in T.serial(batch):
                if at[1] < 0:
                    if at[0] * tile < lengths[b]:
                        at[1] = T.cast(b, "int32")
                    else:
                        at[0] = at[0] - (lengths[b] + tile - 1) // tile
            at[3] = 0
            at[5] = 0
            if at[1] >= 0:
                at[2] = starts[at[1]] + at[0] * tile
                at[3] = T.min(tile, lengths[at[1]] - at[0] * tile)
                at[4] = context[at[1]] + at[0] * tile
                at[5] = (at[4] + at[3] + PAGE - 1) // PAGE

        @T.inline
        def rotate_queries(query, at, head):
            for i in T.serial(at[3] * shared):
                for d in T.serial(half):
                    query[i * size + d] = T.float32(scale) * (
                        x[at[2] + i // shared, (head * shared + i % shared) * size + d]
                        * table[(at[4] + i // shared) // PAGE, d, (at[4] + i // shared) % PAGE]
                        - x[at[2] + i // shared, (head * shared + i % shared) * size + half + d]
                        * table[(at[4] + i // shared) // PAGE, half + d, (at[4] + i // shared) % PAGE]
                    )
                    query[i * size + half + d] = T.float32(scale) * (
                        x[at[2] + i // shared, (head * shared + i % shared) * size + half + d]
                        * table[(at[4] + i // shared) // PAGE, d, (at[4] + i // shared) % PAGE]
                        + x[at[2] + i // shared, (head * shared + i % shared) * size + d]
                        * table[(at[4] + i // shared) // PAGE, half + d, (at[4] + i // shared) % PAGE]
                    )

        @T.inline
        def rotate_page(key, at, head, page, side):
            # side: 0 or 1, the half of `key` [D, 32] that this page fills
            for d in T.serial(half):
                key[T.ramp(d * 32 + side * 16, 1, 16)] = (
                    pages[visible[at[1], page], layer, 0, head, T.ramp(d * PAGE, 1, 16)]
                    * table[page, d, T.ramp(0, 1, 16)]
                    - pages[visible[at[1], page], layer, 0, head, T.ramp((half + d) * PAGE, 1, 16)]
                    * table[page, half + d, T.ramp(0, 1, 16)]
                )
                key[T.ramp((half + d) * 32 + side * 16, 1, 16)] = (
                    pages[visible[at[1], page], layer, 0, head, T.ramp((half + d) * PAGE, 1, 16)]
                    * table[page, d, T.ramp(0, 1, 16)]
                    + pages[visible[at[1], page], layer, 0, head, T.ramp(d * PAGE, 1, 16)]
                    * table[page, half + d, T.ramp(0, 1, 16)]
                )

        @T.inline
        def score(acc, query, key, scores, first, column):
            for i in T.unroll(_SCORED * 2):
                acc[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
            for d in T.serial(size):
                for i in T.unroll(_SCORED):
                    for side in T.unroll(2):
                        acc[T.ramp((i * 2 + side) * 16, 1, 16)] = (
                            acc[T.ramp((i * 2 + side) * 16, 1, 16)]
                            + T.broadcast(query[(first + i) * size + d], 16) * key[T.ramp(d * 32 + side * 16, 1, 16)]
                        )
            for i in T.unroll(_SCORED):
                for side in T.unroll(2):
                    scores[T.ramp((first + i) * span + column + side * 16, 1, 16)] = acc[
                        T.ramp((i * 2 + side) * 16, 1, 16)
                    ]

        @T.inline
        def softmax(wide, narrow, scores, at, i):
            # narrow: 0 greatest score, 1 last visible position; lanes are reduced once, at the end
            narrow[1] = T.cast(at[4] + i // shared, "float32")
            wide[T.ramp(0, 1, 16)] = T.broadcast(T.float32(_LEAST), 16)
            for page in T.serial((at[4] + i // shared) // PAGE + 1):
                wide[T.ramp(0, 1, 16)] = T.max(
                    wide[T.ramp(0, 1, 16)],
                    T.Select(
                        T.ramp(page * PAGE, 1, 16) <= T.broadcast(at[4] + i // shared, 16),
                        scores[T.ramp(i * span + page * PAGE, 1, 16)],
                        T.broadcast(T.float32(_LEAST), 16),
                    ),
                )
            narrow[0] = fold(wide, greater)
            wide[T.ramp(0, 1, 16)] = T.broadcast(T.float32(0), 16)
            for page in T.serial((at[4] + i // shared) // PAGE + 1):
                scores[T.ramp(i * span + page * PAGE, 1, 16)] = T.Select(
                    T.ramp(page * PAGE, 1, 16) <= T.broadcast(at[4] + i // shared, 16),
                    exp2(scores[T.ramp(i * span + page * PAGE, 1, 16)] - T.broadcast(narrow[0], 16)),
                    T.broadcast(T.float32(0), 16),
                )
                wide[T.ramp(0, 1, 16)] = wide[T.ramp(0, 1, 16)] + scores[T.ramp(i * span + page * PAGE, 1, 16)]
            # later rows of the task see further pages; here they weigh nothing
            for page in T.serial(at[5] - (at[4] + i // shared) // PAGE - 1):
                scores[T.ramp(i * span + ((at[4] + i // shared) // PAGE + 1 + page) * PAGE, 1, 16)] = T.broadcast(
                    T.float32(0), 16
                )

        @T.inline
        def mix(acc, scores, sums, at, head, first):
            for i in T.unroll(mixed * vectors):
                acc[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
            for page in T.serial(at[5]):
                # rows after the last position were never written and may hold anything
                for j in T.serial(T.min(PAGE, at[4] + at[3] - page * PAGE)):
                    for i in T.unroll(mixed):
                        for c in T.unroll(vectors):
                            acc[T.ramp((i * vectors + c) * 16, 1, 16)] = (
                                acc[T.ramp((i * vectors + c) * 16, 1, 16)]
                                + T.broadcast(scores[(first + i) * span + page * PAGE + j], 16)
                                * pages[visible[at[1], page], layer, 1, head, T.ramp(j * size + c * 16, 1, 16)]
                            )
            for i in T.unroll(mixed):
                if first + i < at[3] * shared:
                    for c in T.unroll(vectors):
                        out[
                            at[2] + (first + i) // shared,
                            T.ramp((head * shared + (first + i) % shared) * size + c * 16, 1, 16),
                        ] = acc[T.ramp((i * vectors + c) * 16, 1, 16)] * T.broadcast(sums[first + i], 16)

        for task in T.parallel(kv_heads * (rows // tile + batch)):
            with T.sblock("task"):
                # inferred regions would name the locals below, and equal kernels would no longer compare equal
                T.reads()
                T.writes()
                at = T.sblock_alloc_buffer((8,), "int32", scope="local")
                acc = T.sblock_alloc_buffer((max(_SCORED * 2, mixed * vectors) * 16,), "float32", scope="local")
                wide = T.sblock_alloc_buffer((16,), "float32", scope="local")
                narrow = T.sblock_alloc_buffer((2,), "float32", scope="local")
                sums = T.sblock_alloc_buffer((pairs + mixed,), "float32", scope="local")
                query = T.sblock_alloc_buffer((pairs * size,), "float32")
                key = T.sblock_alloc_buffer((size * 32,), "float32")
                scores = T.sblock_alloc_buffer(((pairs + mixed) * span,), "float32")
                place(at, task)
                rotate_queries(query, at, task // (rows // tile + batch))
                for two in T.serial((at[5] + 1) // 2):
                    rotate_page(key, at, task // (rows // tile + batch), two * 2, 0)
                    # an odd last page is scored twice; the second time lies past every visible position
                    rotate_page(key, at, task // (rows // tile + batch), T.min(two * 2 + 1, at[5] - 1), 1)
                    for i in T.serial((at[3] * shared + _SCORED - 1) // _SCORED):
                        score(acc, query, key, scores, i * _SCORED, two * 32)
                for i in T.serial(at[3] * shared):
                    softmax(wide, narrow, scores, at, i)
                    sums[i] = T.float32(1) / fold(wide, add)
                for i in T.serial((at[3] * shared + mixed - 1) // mixed):
                    mix(acc, scores, sums, at, task // (rows // tile + batch), i * mixed)

    return attend
