"""Rows of a quantised matrix as float32, read from the layout that its products are made from.

So an embedding that is tied to the head lies in memory once.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_core.device.metadata import group_bytes, zero_point
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP


def embed_groups(count: int, width: int, bits: int) -> Any:
    """Make the kernel: tokens [T] int32, w [ceil(count/32), G, bytes] uint8 -> y [T, K] float32."""
    blocks, groups, size = -(-count // 32), width // GROUP, group_bytes(bits)
    steps = 8 if bits == 8 else 4  # of a group, 4 columns each; int4 keeps the other 4 in high halves

    @T.prim_func(s_tir=True)
    def embed_groups(t_: T.handle, w_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        tokens = T.match_buffer(t_, (rows,), "int32")
        w = T.match_buffer(w_, (blocks, groups, size), "uint8")
        y = T.match_buffer(y_, (rows, width), "float32")
        for row in T.serial(rows):
            for g in T.serial(groups):
                for c in T.serial(GROUP):
                    with T.sblock("value"):
                        T.reads()
                        T.writes()
                        # byte: step of four columns, half of the block, row in it, column of the four
                        y[row, g * GROUP + c] = (
                            T.cast(
                                T.bitwise_and(
                                    T.shift_right(
                                        T.cast(
                                            w[
                                                tokens[row] // 32,
                                                g,
                                                (c // 4 % steps) * 128
                                                + tokens[row] % 32 // 16 * 64
                                                + tokens[row] % 16 * 4
                                                + c % 4,
                                            ],
                                            "int32",
                                        ),
                                        c // 4 // steps * 4,
                                    ),
                                    (1 << bits) - 1,
                                )
                                - zero_point(bits),
                                "float32",
                            )
                        ) * T.cast(
                            T.reinterpret(
                                w[tokens[row] // 32, g, T.ramp(size - 64 + tokens[row] % 32 * 2, 1, 2)],
                                dtype="float16",
                            ),
                            "float32",
                        )

    return embed_groups
