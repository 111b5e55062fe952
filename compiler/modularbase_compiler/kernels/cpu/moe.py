"""A mixture's chosen experts, token by token (Shazeer et al., 2017): plain, weights row-major, float32."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated


def moe(experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
    """Make the kernel: x [T, E], logits [T, X], gate_up [X, 2F or F, E], down [X, E, F] -> y [T, E]."""
    gated = activation in GATED
    projected = 2 * ffn if gated else ffn

    @T.prim_func(s_tir=True)
    def moe(x_: T.handle, l_: T.handle, u_: T.handle, d_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), "float32")
        logits = T.match_buffer(l_, (rows, experts), "float32")
        gate_up = T.match_buffer(u_, (experts, projected, width), "float32")
        down = T.match_buffer(d_, (experts, width, ffn), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")
        for row in T.parallel(rows):
            with T.sblock("row"):
                hidden = T.sblock_alloc_buffer((ffn,), "float32")
                sums = T.sblock_alloc_buffer((2,), "float32")
                left = T.sblock_alloc_buffer((experts,), "float32")  # logits, of those not chosen yet
                ids = T.sblock_alloc_buffer((chosen,), "int32")
                gates = T.sblock_alloc_buffer((chosen,), "float32")
                for e in T.serial(experts):
                    left[e] = logits[row, e]
                sums[0] = T.float32(0)
                for c in T.serial(chosen):
                    ids[c] = 0
                    for e in T.serial(1, experts):
                        ids[c] = T.if_then_else(left[e] > left[ids[c]], e, ids[c])
                    gates[c] = left[ids[c]]
                    left[ids[c]] = T.min_value("float32")
                    sums[0] = sums[0] + T.exp(gates[c] - gates[0])
                for c in T.serial(1, chosen):
                    gates[c] = T.exp(gates[c] - gates[0]) / sums[0]
                gates[0] = T.float32(1) / sums[0]
                for e in T.serial(width):
                    y[row, e] = T.float32(0)
                for c in T.serial(chosen):
                    for f in T.serial(ffn):
                        sums[0] = T.float32(0)
                        sums[1] = T.float32(0)
                        for e in T.serial(width):
                            sums[0] = sums[0] + x[row, e] * gate_up[ids[c], f, e]
                            if gated:
                                sums[1] = sums[1] + x[row, e] * gate_up[ids[c], ffn + f, e]
                        if gated:
                            hidden[f] = activated(sums[0], activation) * sums[1]
                        else:
                            hidden[f] = activated(sums[0], activation)
                    for e in T.serial(width):
                        sums[0] = T.float32(0)
                        for f in T.serial(ffn):
                            sums[0] = sums[0] + hidden[f] * down[ids[c], e, f]
                        y[row, e] = y[row, e] + gates[c] * sums[0]

    return moe
