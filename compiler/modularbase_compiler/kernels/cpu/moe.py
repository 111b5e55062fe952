"""A mixture's chosen experts, token by token (Shazeer et al., 2017): plain, weights row-major, float32."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated


def moe(experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
    """Make the kernel: x [T, E], ids [T, k], gates [T, k], gate_up [X, 2F or F, E], down [X, E, F] -> y [T, E]."""
    gated = activation in GATED
    projected = 2 * ffn if gated else ffn

    @T.prim_func(s_tir=True)
    def moe(x_: T.handle, i_: T.handle, g_: T.handle, u_: T.handle, d_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), "float32")
        ids = T.match_buffer(i_, (rows, chosen), "int32")
        gates = T.match_buffer(g_, (rows, chosen), "float32")
        gate_up = T.match_buffer(u_, (experts, projected, width), "float32")
        down = T.match_buffer(d_, (experts, width, ffn), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")
        for row in T.parallel(rows):
            with T.sblock("row"):
                hidden = T.sblock_alloc_buffer((ffn,), "float32")
                sums = T.sblock_alloc_buffer((2,), "float32", scope="local")
                for e in T.serial(width):
                    y[row, e] = T.float32(0)
                for c in T.serial(chosen):
                    for f in T.serial(ffn):
                        sums[0] = T.float32(0)
                        sums[1] = T.float32(0)
                        for e in T.serial(width):
                            sums[0] = sums[0] + x[row, e] * gate_up[ids[row, c], f, e]
                            if gated:
                                sums[1] = sums[1] + x[row, e] * gate_up[ids[row, c], ffn + f, e]
                        if gated:
                            hidden[f] = activated(sums[0], activation) * sums[1]
                        else:
                            hidden[f] = activated(sums[0], activation)
                    for e in T.serial(width):
                        sums[0] = T.float32(0)
                        for f in T.serial(ffn):
                            sums[0] = sums[0] + hidden[f] * down[ids[row, c], e, f]
                        y[row, e] = y[row, e] + gates[row, c] * sums[0]

    return moe
