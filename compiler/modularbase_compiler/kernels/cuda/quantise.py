"""Rows to int8 by groups of 32, as `linear_groups` reads them; what made the rows (a norm, a gate) is done on the way.

q = rint(x / s) with s = max|x| / 127 of the group; see `graph.quantised.quantise_rows`. A warp makes a group, a column
in each lane; only a norm needs all of a row in one block.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated
from modularbase_compiler.kernels.cuda.integers import group_scale, group_value, warp_greatest, warp_sum
from modularbase_core.sdk.parameters import LEAST_MAXIMUM
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP

_WARPS = 8


def quantise(width: int, *, epsilon: float | None = None, form: str = "", dtype: str) -> Any:
    """Make the kernel: x [T, K], (w [K]) of `dtype` -> q [T, K] int8, scale [T, K/32] float32.

    epsilon: x is normalised first, by RMSNorm with weights w. form: x [T, 2K] or [T, K] is what an activation of this
    form (see `activation`) makes the rows of.
    """
    groups = width // GROUP
    gated, ungated, normed = form in GATED, form not in ("", *GATED), epsilon is not None
    read = 2 * width if gated else width
    spans = -(-groups // _WARPS)
    steps, blocks = (spans, 1) if normed else (1, spans)

    @T.prim_func(s_tir=True)
    def quantise(x_: T.handle, w_: T.handle, q_: T.handle, s_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, read), dtype)
        w = T.match_buffer(w_, (width,), dtype)
        q = T.match_buffer(q_, (rows, width), "int8")
        scale = T.match_buffer(s_, (rows, groups), "float32")
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for by in T.thread_binding(blocks, thread="blockIdx.y"):
                for warp in T.thread_binding(_WARPS, thread="threadIdx.y"):
                    for lane in T.thread_binding(32, thread="threadIdx.x"):
                        with T.sblock("row"):
                            T.reads()
                            T.writes()
                            parts = T.sblock_alloc_buffer((_WARPS,), "float32", scope="shared")
                            # the value; a norm's factor; the group's greatest size, then its scale
                            one = T.sblock_alloc_buffer((3,), "float32", scope="local")
                            if normed:
                                one[1] = T.float32(0)
                                for i in T.serial(steps):
                                    if i * _WARPS + warp < groups:
                                        one[0] = T.cast(x[row, (i * _WARPS + warp) * GROUP + lane], "float32")
                                        one[1] = one[1] + one[0] * one[0]
                                parts[warp] = warp_sum(one[1])
                                T.evaluate(T.tvm_storage_sync("shared"))
                                one[1] = T.float32(0)
                                for i in T.serial(_WARPS):
                                    one[1] = one[1] + parts[i]
                                one[1] = T.float32(1) / T.sqrt(one[1] / T.float32(width) + T.float32(epsilon or 0))
                            for i in T.serial(steps):
                                if (by * steps + i) * _WARPS + warp < groups:
                                    one[0] = T.cast(
                                        x[row, ((by * steps + i) * _WARPS + warp) * GROUP + lane], "float32"
                                    )
                                    if normed:
                                        one[0] = (
                                            one[0]
                                            * one[1]
                                            * T.cast(w[((by * steps + i) * _WARPS + warp) * GROUP + lane], "float32")
                                        )
                                    elif gated:
                                        one[0] = activated(one[0], form) * T.cast(
                                            x[row, width + ((by * steps + i) * _WARPS + warp) * GROUP + lane], "float32"
                                        )
                                    elif ungated:
                                        one[0] = activated(one[0], form)
                                    one[2] = warp_greatest(T.abs(one[0]))
                                    one[2] = group_scale(one[2], LEAST_MAXIMUM)
                                    if lane == 0:
                                        scale[row, (by * steps + i) * _WARPS + warp] = one[2]
                                    q[row, ((by * steps + i) * _WARPS + warp) * GROUP + lane] = T.cast(
                                        group_value(one[0], one[2]), "int8"
                                    )

    kept = (True, normed, True, True)
    parameters = [item for item, keep in zip(quantise.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, quantise.body, quantise.ret_type, quantise.attrs)
