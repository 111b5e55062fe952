"""What one warp does with 16 (row, head) pairs and 64 keys: rotate, score, weigh, mix; all in registers.

Lane 4g + q holds pairs g and g + 8. A page is read by loads of 16 bytes as it lies: of keys, lane 4g + q takes eight
tokens of one dimension and of the one it is rotated with; of values, it takes neighbouring dimensions of a token of
page q. Weights are float16, relative to a whole power of two: then a shift of that power loses nothing, and however
keys are divided, sums differ by float32's rounding alone.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any, Final

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import LOG2_E
from modularbase_compiler.kernels.cuda.fragments import OCTET, WARP, copy, multiply
from modularbase_core.sdk.architecture import PAGE_TOKENS as PAGE

PAIRS: Final = 16
CHUNK: Final = 4 * PAGE  # keys
LOW: Final = -1.0e30
"""Below every score, and far above a masked one: where nothing is seen, nothing weighs."""

_LEAST = -3.0e38  # a masked score
_ALL = 0xFFFFFFFF  # lanes that shuffle


def run(size: int) -> int:
    """Return how many neighbouring dimensions a lane reads of a value: 8 where heads of `size` allow it, else 4."""
    return 8 if size % 64 == 0 else 4


def turning(size: int, shared: int) -> Any:
    """Make `turn_query` and `turn_keys` for heads of `size`, `shared` query heads a kv head.

    A step is 16 dimensions: d = 8 step + q, d + 4, and those half a head further. A lane's part of it are four halves.
    query: [2, D/16, 4] halves, local. right: [8, 4] halves, local, token 8g + j of the chunk at j.
    """
    half, scale = size // 2, size**-0.5 * LOG2_E

    @T.inline
    def turn_query(query, x, table, row, head, pair, seen, t):
        # row: the sequence's first; pair: of this lane's first row
        for side in T.unroll(2):
            for part in T.unroll(size // 8):
                query[side * half + part * 2] = T.float16(0)
                query[side * half + part * 2 + 1] = T.float16(0)
                if seen[side] >= 0:
                    query[side * half + part * 2] = T.cast(
                        T.float32(scale)
                        * (
                            T.cast(
                                x[
                                    row + (pair + side * 8) // shared,
                                    (head * shared + (pair + side * 8) % shared) * size + part * 4 + t % 4,
                                ],
                                "float32",
                            )
                            * table[seen[side] // PAGE, part * 4 + t % 4, seen[side] % PAGE]
                            - T.cast(
                                x[
                                    row + (pair + side * 8) // shared,
                                    (head * shared + (pair + side * 8) % shared) * size + half + part * 4 + t % 4,
                                ],
                                "float32",
                            )
                            * table[seen[side] // PAGE, half + part * 4 + t % 4, seen[side] % PAGE]
                        ),
                        "float16",
                    )
                    query[side * half + part * 2 + 1] = T.cast(
                        T.float32(scale)
                        * (
                            T.cast(
                                x[
                                    row + (pair + side * 8) // shared,
                                    (head * shared + (pair + side * 8) % shared) * size + half + part * 4 + t % 4,
                                ],
                                "float32",
                            )
                            * table[seen[side] // PAGE, part * 4 + t % 4, seen[side] % PAGE]
                            + T.cast(
                                x[
                                    row + (pair + side * 8) // shared,
                                    (head * shared + (pair + side * 8) % shared) * size + part * 4 + t % 4,
                                ],
                                "float32",
                            )
                            * table[seen[side] // PAGE, half + part * 4 + t % 4, seen[side] % PAGE]
                        ),
                        "float16",
                    )

    @T.inline
    def turn_keys(right, keys, angles, pages, table, page, layer, head, chunk, step, t):
        # page: this lane's, or -1 where no row of the tile sees it
        for part in T.unroll(2):
            for side in T.unroll(2):  # keys and cosines, then what they are rotated with and sines
                keys[T.ramp(side * OCTET, 1, OCTET)] = T.broadcast(T.float16(0), OCTET)
                for quad in T.unroll(2):
                    angles[T.ramp(side * OCTET + quad * 4, 1, 4)] = T.broadcast(T.float32(0), 4)
                if page >= 0:
                    copy(
                        keys[side * OCTET],
                        pages[
                            page,
                            layer,
                            0,
                            head,
                            (side * half + step * 8 + part * 4 + t % 4) * PAGE + t % 8 // 4 * OCTET,
                        ],
                        16,
                    )
                    for quad in T.unroll(2):
                        copy(
                            angles[side * OCTET + quad * 4],
                            table[
                                chunk * 4 + t % WARP // 8,
                                side * half + step * 8 + part * 4 + t % 4,
                                t % 8 // 4 * OCTET + quad * 4,
                            ],
                            16,
                        )
            for j in T.unroll(OCTET):
                right[j * 4 + part * 2] = T.cast(
                    T.cast(keys[j], "float32") * angles[j] - T.cast(keys[OCTET + j], "float32") * angles[OCTET + j],
                    "float16",
                )
                right[j * 4 + part * 2 + 1] = T.cast(
                    T.cast(keys[OCTET + j], "float32") * angles[j] + T.cast(keys[j], "float32") * angles[OCTET + j],
                    "float16",
                )

    return turn_query, turn_keys


def weighing(size: int) -> Any:
    """Make `score`, `weigh`, `mix` and `gather` for heads of `size`.

    scores: [8, 4], token 16q + 8 (i % 2) + j of the chunk at j, i; acc: [D/8, 4] float32; weights: [2, 8, 2] halves;
    top, total, seen: of this lane's two pairs, the power of two, the sum of this lane's weights, and the position.
    """
    half, width = size // 2, run(size)

    @T.inline
    def score(scores, query, right, first, stride, step):
        for j in T.unroll(8):
            multiply(scores[j * 4], query[step * 4], query[half + step * 4], right[first + j * stride])

    @T.inline
    def weigh(scores, weights, acc, top, total, seen, factor, chunk, t):
        for side in T.unroll(2):
            factor[0] = T.float32(LOW)
            for j in T.unroll(8):
                for i in T.unroll(2):
                    scores[j * 4 + side * 2 + i] = T.if_then_else(
                        chunk * CHUNK + t % 4 * PAGE + i * 8 + j <= seen[side],
                        scores[j * 4 + side * 2 + i],
                        T.float32(_LEAST),
                    )
                    factor[0] = T.max(factor[0], scores[j * 4 + side * 2 + i])
            for i in T.unroll(2):
                factor[1] = T.tvm_warp_shuffle_xor(T.uint32(_ALL), factor[0], 1 + i, WARP, WARP)
                factor[0] = T.max(factor[0], factor[1])
            factor[0] = T.max(top[side], T.ceil(factor[0]))
            factor[1] = T.exp2(top[side] - factor[0])
            top[side] = factor[0]
            total[side] = total[side] * factor[1]
            for i in T.unroll(size // 4):
                acc[i // 2 * 4 + side * 2 + i % 2] = acc[i // 2 * 4 + side * 2 + i % 2] * factor[1]
            for j in T.unroll(8):
                for i in T.unroll(2):
                    weights[side * 16 + j * 2 + i] = T.cast(T.exp2(scores[j * 4 + side * 2 + i] - top[side]), "float16")
                    total[side] = total[side] + T.cast(weights[side * 16 + j * 2 + i], "float32")

    @T.inline
    def mix(acc, weights, values, right, pages, page, layer, head, chunk, last, t):
        # tokens after the last position were never written and may hold anything
        for group in T.unroll(size // (8 * width)):
            for two in T.unroll(4):
                for i in T.unroll(4):  # tokens 2 two, 8 + 2 two, and the two after them
                    values[T.ramp(i * width, 1, width)] = T.broadcast(T.float16(0), width)
                    if chunk * CHUNK + t % 4 * PAGE + i % 2 * 8 + two * 2 + i // 2 <= last:
                        copy(
                            values[i * width],
                            pages[
                                page,
                                layer,
                                1,
                                head,
                                (i % 2 * 8 + two * 2 + i // 2) * size + (group * 8 + t % WARP // 4) * width,
                            ],
                            2 * width,
                        )
                for n in T.unroll(width):
                    for i in T.unroll(4):
                        right[n * 4 + i] = values[i * width + n]
                    multiply(acc[(group * width + n) * 4], weights[two * 4], weights[16 + two * 4], right[n * 4])

    @T.inline
    def gather(total, factor):
        # the sum over the four lanes that hold a pair
        for side in T.unroll(2):
            for i in T.unroll(2):
                factor[0] = T.tvm_warp_shuffle_xor(T.uint32(_ALL), total[side], 1 + i, WARP, WARP)
                total[side] = total[side] + factor[0]

    return score, weigh, mix, gather


def place_of(size: int, i: Any, t: Any) -> Any:
    """Return the dimension of the i-th float of acc [D/8, 4], of either pair, in thread t."""
    width = run(size)
    return i // 4 // width * 8 * width + (t % 4 * 2 + i % 2) * width + i // 4 % width
