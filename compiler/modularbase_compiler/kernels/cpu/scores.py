"""Scores of a tile, as many (row, head) pairs as fit the registers, against a block of keys, rotated as they are read.

Many rows share a block that is rotated once into a buffer; the heads of one row rotate it in registers, which spares
storing it, and fetch pages ahead. Either way a score is summed over d, half + d, d + 1 ..., so its bits are the same.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any, Final

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import LOG2_E, prefetch
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

BLOCK: Final = 16
"""Pages of a block."""
SPAN: Final = BLOCK * PAGE
"""Tokens of a block."""
_AHEAD = 8  # pages of keys between fetching and reading one: 1.3 to 1.8 x as fast as no fetching; 4 or 16 are alike


def scoring(size: int, kv_heads: int) -> Any:
    """Make `rotate_query`, `rotate_block`, `score_rotated` and `score_pages` for heads of `size`.

    Scores are [pairs, 256], in units of log2. `height` is the pairs of a tile, `columns` the pages scored at once.
    """
    half = size // 2
    scale = size**-0.5 * LOG2_E

    @T.inline
    def rotate_query(query, turn, x, table, row, position, head, first, amount):
        # heads `head` .. `head` + `amount` of a row become pairs `first` .. of `query` [pairs, D]
        for d in T.serial(size):
            turn[d] = table[position // PAGE, d, position % PAGE]
        for i in T.serial(amount):
            for c in T.serial(half // 16):
                query[T.ramp((first + i) * size + c * 16, 1, 16)] = T.broadcast(T.float32(scale), 16) * (
                    x[row, T.ramp((head + i) * size + c * 16, 1, 16)] * turn[T.ramp(c * 16, 1, 16)]
                    - x[row, T.ramp((head + i) * size + half + c * 16, 1, 16)] * turn[T.ramp(half + c * 16, 1, 16)]
                )
                query[T.ramp((first + i) * size + half + c * 16, 1, 16)] = T.broadcast(T.float32(scale), 16) * (
                    x[row, T.ramp((head + i) * size + half + c * 16, 1, 16)] * turn[T.ramp(c * 16, 1, 16)]
                    + x[row, T.ramp((head + i) * size + c * 16, 1, 16)] * turn[T.ramp(half + c * 16, 1, 16)]
                )

    @T.inline
    def rotate(key, low, high, pages, table, page_id, layer, head, page, d):
        key[T.ramp(low, 1, 16)] = (
            pages[page_id, layer, 0, head, T.ramp(d * PAGE, 1, 16)] * table[page, d, T.ramp(0, 1, 16)]
            - pages[page_id, layer, 0, head, T.ramp((half + d) * PAGE, 1, 16)] * table[page, half + d, T.ramp(0, 1, 16)]
        )
        key[T.ramp(high, 1, 16)] = (
            pages[page_id, layer, 0, head, T.ramp((half + d) * PAGE, 1, 16)] * table[page, d, T.ramp(0, 1, 16)]
            + pages[page_id, layer, 0, head, T.ramp(d * PAGE, 1, 16)] * table[page, half + d, T.ramp(0, 1, 16)]
        )

    @T.inline
    def rotate_block(key, pages, table, visible, sequence, layer, head, block, last):
        # tiles are scored against up to four pages: one past the last is the last again, out of everyone's sight
        for page, d in T.grid(T.min(BLOCK, (last - block * BLOCK + 4) // 4 * 4), half):
            rotate(
                key,
                page * PAGE * size + d * 16,
                page * PAGE * size + (half + d) * 16,
                pages,
                table,
                visible[sequence, T.min(block * BLOCK + page, last)],
                layer,
                head,
                T.min(block * BLOCK + page, last),
                d,
            )

    @T.inline
    def clear(acc, height, columns):
        for i in T.unroll(height * columns):
            acc[T.ramp(i * 16, 1, 16)] = T.broadcast(T.float32(0), 16)

    @T.inline
    def multiply(acc, query, turned, first, d, height, columns):
        # turned: for each column the rotated keys of d and of half + d
        for side in T.unroll(2):
            for i in T.unroll(height):
                for c in T.unroll(columns):
                    acc[T.ramp((i * columns + c) * 16, 1, 16)] = (
                        acc[T.ramp((i * columns + c) * 16, 1, 16)]
                        + T.broadcast(query[(first + i) * size + side * half + d], 16)
                        * turned[T.ramp((c * 2 + side) * 16, 1, 16)]
                    )

    @T.inline
    def keep(acc, scores, group, height, columns):
        for i in T.unroll(height):
            for c in T.unroll(columns):
                scores[T.ramp(i * SPAN + (group * columns + c) * 16, 1, 16)] = acc[
                    T.ramp((i * columns + c) * 16, 1, 16)
                ]

    @T.inline
    def score_rotated(acc, turned, scores, query, key, first, seen, height, columns):
        for group in T.serial((seen + columns - 1) // columns):
            clear(acc, height, columns)
            for d in T.serial(half):
                for c in T.unroll(columns):
                    for side in T.unroll(2):
                        turned[T.ramp((c * 2 + side) * 16, 1, 16)] = key[
                            T.ramp((group * columns + c) * PAGE * size + (side * half + d) * 16, 1, 16)
                        ]
                multiply(acc, query, turned, first, d, height, columns)
            keep(acc, scores, group, height, columns)

    @T.inline
    def fetch(pages, page_id, layer, side, head, line):
        # pages lie scattered, and the processor's own fetching stops where one ends
        T.evaluate(prefetch(pages[page_id, layer, side, head, line * 16]))

    @T.inline
    def score_pages(
        acc, turned, scores, query, pages, table, visible, place, layer, head, first, seen, height, columns
    ):
        # place: 0 sequence, 1 block, 2 last page of the sequence, 3 page of keys to fetch; heads of a block are scored
        # one after the other, then the next block
        for group in T.serial((seen + columns - 1) // columns):
            clear(acc, height, columns)
            place[3] = head * BLOCK + group * columns + _AHEAD
            for d in T.serial(half):
                for c in T.unroll(columns):
                    # see `rotate_block` for pages past the last
                    rotate(
                        turned,
                        c * 32,
                        c * 32 + 16,
                        pages,
                        table,
                        visible[place[0], T.min(place[1] * BLOCK + group * columns + c, place[2])],
                        layer,
                        head,
                        T.min(place[1] * BLOCK + group * columns + c, place[2]),
                        d,
                    )
                    for side in T.unroll(2):
                        fetch(
                            pages,
                            visible[place[0], T.min(place[1] * BLOCK + group * columns + c, place[2])],
                            layer,
                            1,
                            head,
                            side * half + d,
                        )
                        fetch(
                            pages,
                            visible[
                                place[0],
                                T.min(
                                    (place[1] + place[3] // (kv_heads * BLOCK)) * BLOCK + place[3] % BLOCK + c, place[2]
                                ),
                            ],
                            layer,
                            0,
                            place[3] // BLOCK % kv_heads,
                            side * half + d,
                        )
                multiply(acc, query, turned, first, d, height, columns)
            keep(acc, scores, group, height, columns)

    return rotate_query, rotate_block, score_rotated, score_pages
