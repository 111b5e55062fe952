"""Rows of a quantised matrix as floats, read from the layout that its products are made from.

So an embedding that is tied to the head lies in memory once.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cuda.integers import load_scale
from modularbase_core.device.metadata import group_bytes, zero_point
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP

_WARPS = 8


def embed_groups(count: int, width: int, bits: int, dtype: str) -> Any:
    """Make the kernel: tokens [T] int32, w [ceil(count/32), G, bytes] uint8 -> y [T, K] of `dtype`.

    w: layout "t32q8" or "t32q4", see `device.layouts`.
    """
    blocks, groups, size = -(-count // 32), width // GROUP, group_bytes(bits)

    def place(row: Any, column: Any) -> Any:
        """Return which byte of a group holds a value: by its lane, then by its row of the lane's and its column."""
        lane = row % 8 * 4 + column % 16 // 4
        if bits == 8:
            return row // 16 * 512 + lane * 16 + (column // 16 * 2 + row % 16 // 8) * 4 + column % 4
        return lane * 16 + row // 8 * 4 + column % 4

    @T.prim_func(s_tir=True)
    def embed_groups(t_: T.handle, w_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        tokens = T.match_buffer(t_, (rows,), "int32")
        w = T.match_buffer(w_, (blocks, groups, size), "uint8")
        y = T.match_buffer(y_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for by in T.thread_binding(-(-groups // _WARPS), thread="blockIdx.y"):
                for warp in T.thread_binding(_WARPS, thread="threadIdx.y"):
                    for lane in T.thread_binding(32, thread="threadIdx.x"):
                        with T.sblock("value"):
                            T.reads()
                            T.writes()
                            whole = T.sblock_alloc_buffer((1,), "int32", scope="local")
                            if by * _WARPS + warp < groups:
                                whole[0] = T.cast(
                                    w[
                                        T.cast(tokens[row] // 32, "int64"),
                                        by * _WARPS + warp,
                                        place(tokens[row] % 32, lane),
                                    ],
                                    "int32",
                                )
                                if bits == 4:
                                    whole[0] = T.bitwise_and(T.shift_right(whole[0], lane // 16 * 4), 15)
                                # the sign is the highest bit of those that are used
                                whole[0] = T.bitwise_xor(whole[0], zero_point(bits)) - zero_point(bits)
                                y[row, (by * _WARPS + warp) * GROUP + lane] = T.cast(
                                    T.cast(whole[0], "float32")
                                    * load_scale(
                                        w[
                                            T.cast(tokens[row] // 32, "int64"),
                                            by * _WARPS + warp,
                                            size - 64 + tokens[row] % 8 * 8 + tokens[row] % 32 // 8 * 2,
                                        ]
                                    ),
                                    dtype,
                                )

    return embed_groups
