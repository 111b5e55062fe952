"""What a block of keys gives a (row, head) pair, its partial, and how partials become the pair's result.

A partial is D + 32 floats: values weighted by the block's own softmax, the sum of weights in 16 lanes, and the greatest
score 16 times. Blocks are merged in order (Milakov and Gimelshein, 2018), whoever computed them and when.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.scores import BLOCK, SPAN
from modularbase_compiler.kernels.cpu.vector import fold, weight
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

_LEAST = -3.0e38  # a masked score: below every score, and finite
_LOW = -1.0e30  # below every score, and far above _LEAST: where nothing is seen, nothing weighs


def partial_floats(size: int) -> int:
    """Return how many floats a partial is."""
    return size + 32


def mixing(size: int) -> Any:
    """Make `softmax`, `mix`, `begin`, `merge` and `finish` for heads of `size`.

    Partials are [pairs, D + 32]. `height` is the pairs of a tile, `columns` the vectors of values mixed at once.
    """
    vectors = size // 16
    greater, add = tirx.max, lambda a, b: a + b

    @T.inline
    def softmax(wide, narrow, scores, partial, slot, first_key, seen, position, i):
        # scores become weights; those of keys that only later rows of the tile see become 0
        for page in T.serial(seen):
            if first_key + page * PAGE + PAGE - 1 > position:
                scores[T.ramp(i * SPAN + page * PAGE, 1, 16)] = T.Select(
                    T.ramp(first_key + page * PAGE, 1, 16) <= T.broadcast(position, 16),
                    scores[T.ramp(i * SPAN + page * PAGE, 1, 16)],
                    T.broadcast(T.float32(_LEAST), 16),
                )
        wide[T.ramp(0, 1, 16)] = T.broadcast(T.float32(_LOW), 16)
        for page in T.serial(seen):
            wide[T.ramp(0, 1, 16)] = T.max(wide[T.ramp(0, 1, 16)], scores[T.ramp(i * SPAN + page * PAGE, 1, 16)])
        narrow[0] = fold(wide, greater)
        wide[T.ramp(0, 1, 16)] = T.broadcast(T.float32(0), 16)
        for page in T.serial(seen):
            scores[T.ramp(i * SPAN + page * PAGE, 1, 16)] = weight(
                scores[T.ramp(i * SPAN + page * PAGE, 1, 16)] - T.broadcast(narrow[0], 16)
            )
            wide[T.ramp(0, 1, 16)] = wide[T.ramp(0, 1, 16)] + scores[T.ramp(i * SPAN + page * PAGE, 1, 16)]
        partial[slot, T.ramp(size, 1, 16)] = wide[T.ramp(0, 1, 16)]
        partial[slot, T.ramp(size + 16, 1, 16)] = T.broadcast(narrow[0], 16)

    @T.inline
    def mix(acc, scores, pages, visible, partial, sequence, layer, head, block, slot, tokens, height, columns):
        # two tokens at once: where `acc` is kept in memory, this halves its stores (1.08 x in decode)
        for part in T.serial(vectors // columns):
            for i in T.unroll(height * columns):
                acc[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
            # rows after the last position were never written and may hold anything
            for two in T.serial(tokens // 2):
                for i in T.unroll(height):
                    for c in T.unroll(columns):
                        acc[T.ramp((i * columns + c) * 16, 1, 16)] = (
                            acc[T.ramp((i * columns + c) * 16, 1, 16)]
                            + T.broadcast(scores[i * SPAN + two * 2], 16)
                            * pages[
                                visible[sequence, block * BLOCK + two // (PAGE // 2)],
                                layer,
                                1,
                                head,
                                T.ramp(two % (PAGE // 2) * 2 * size + (part * columns + c) * 16, 1, 16),
                            ]
                            + T.broadcast(scores[i * SPAN + two * 2 + 1], 16)
                            * pages[
                                visible[sequence, block * BLOCK + two // (PAGE // 2)],
                                layer,
                                1,
                                head,
                                T.ramp((two % (PAGE // 2) * 2 + 1) * size + (part * columns + c) * 16, 1, 16),
                            ]
                        )
            if tokens % 2 == 1:
                for i in T.unroll(height):
                    for c in T.unroll(columns):
                        acc[T.ramp((i * columns + c) * 16, 1, 16)] = (
                            acc[T.ramp((i * columns + c) * 16, 1, 16)]
                            + T.broadcast(scores[i * SPAN + tokens - 1], 16)
                            * pages[
                                visible[sequence, block * BLOCK + (tokens - 1) // PAGE],
                                layer,
                                1,
                                head,
                                T.ramp((tokens - 1) % PAGE * size + (part * columns + c) * 16, 1, 16),
                            ]
                        )
            for i in T.unroll(height):
                for c in T.unroll(columns):
                    partial[slot + i, T.ramp((part * columns + c) * 16, 1, 16)] = acc[
                        T.ramp((i * columns + c) * 16, 1, 16)
                    ]

    @T.inline
    def begin(whole, i):
        for c in T.serial(vectors + 1):
            whole[i, T.ramp(c * 16, 1, 16)] = T.broadcast(T.float32(0), 16)
        whole[i, T.ramp(size + 16, 1, 16)] = T.broadcast(T.float32(_LOW), 16)

    @T.inline
    def merge(wide, whole, i, partial, slot):
        # wide: the greatest score so far, the block's factor, that of the blocks before; one of them is 1, so a block
        # of which the row sees nothing changes no bit
        wide[T.ramp(0, 1, 16)] = T.max(whole[i, T.ramp(size + 16, 1, 16)], partial[slot, T.ramp(size + 16, 1, 16)])
        wide[T.ramp(16, 1, 16)] = weight(partial[slot, T.ramp(size + 16, 1, 16)] - wide[T.ramp(0, 1, 16)])
        wide[T.ramp(32, 1, 16)] = weight(whole[i, T.ramp(size + 16, 1, 16)] - wide[T.ramp(0, 1, 16)])
        whole[i, T.ramp(size + 16, 1, 16)] = wide[T.ramp(0, 1, 16)]
        for c in T.serial(vectors + 1):
            whole[i, T.ramp(c * 16, 1, 16)] = (
                whole[i, T.ramp(c * 16, 1, 16)] * wide[T.ramp(32, 1, 16)]
                + partial[slot, T.ramp(c * 16, 1, 16)] * wide[T.ramp(16, 1, 16)]
            )

    @T.inline
    def finish(wide, narrow, whole, i, out, row, head):
        wide[T.ramp(0, 1, 16)] = whole[i, T.ramp(size, 1, 16)]
        narrow[0] = T.float32(1) / fold(wide, add)
        for c in T.serial(vectors):
            out[row, T.ramp(head * size + c * 16, 1, 16)] = whole[i, T.ramp(c * 16, 1, 16)] * T.broadcast(narrow[0], 16)

    return softmax, mix, begin, merge, finish
