"""A mixture's chosen experts, a block a token (Shazeer et al., 2017): plain, sums in float32."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED, activated

_THREADS = 128


def moe(experts: int, chosen: int, width: int, ffn: int, activation: str, dtype: str) -> Any:
    """Make the kernel: x [T, E], logits [T, X], gate_up [X, 2F or F, E], down [X, E, F] -> y [T, E]."""
    gated = activation in GATED
    projected = 2 * ffn if gated else ffn

    @T.prim_func(s_tir=True)
    def moe(x_: T.handle, l_: T.handle, u_: T.handle, d_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), dtype)
        logits = T.match_buffer(l_, (rows, experts), "float32")
        gate_up = T.match_buffer(u_, (experts, projected, width), dtype)
        down = T.match_buffer(d_, (experts, width, ffn), dtype)
        y = T.match_buffer(y_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for t in T.thread_binding(_THREADS, thread="threadIdx.x"):
                with T.sblock("row"):
                    T.reads()
                    T.writes()
                    hidden = T.sblock_alloc_buffer((ffn,), "float32", scope="shared")
                    total = T.sblock_alloc_buffer((width,), "float32", scope="shared")
                    sums = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    # every thread chooses for itself: a few hundred steps, beside the products below
                    left = T.sblock_alloc_buffer((experts,), "float32", scope="local")  # logits, of those not chosen
                    ids = T.sblock_alloc_buffer((chosen,), "int32", scope="local")
                    gates = T.sblock_alloc_buffer((chosen,), "float32", scope="local")
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
                    for c in T.serial(chosen):
                        for i in T.serial((ffn + _THREADS - 1) // _THREADS):
                            if i * _THREADS + t < ffn:
                                sums[0] = T.float32(0)
                                sums[1] = T.float32(0)
                                for e in T.serial(width):
                                    sums[0] = sums[0] + T.cast(x[row, e], "float32") * T.cast(
                                        gate_up[ids[c], i * _THREADS + t, e], "float32"
                                    )
                                    if gated:
                                        sums[1] = sums[1] + T.cast(x[row, e], "float32") * T.cast(
                                            gate_up[ids[c], ffn + i * _THREADS + t, e], "float32"
                                        )
                                if gated:
                                    hidden[i * _THREADS + t] = activated(sums[0], activation) * sums[1]
                                else:
                                    hidden[i * _THREADS + t] = activated(sums[0], activation)
                        T.evaluate(T.tvm_storage_sync("shared"))
                        for i in T.serial((width + _THREADS - 1) // _THREADS):
                            if i * _THREADS + t < width:
                                sums[0] = T.float32(0)
                                for f in T.serial(ffn):
                                    sums[0] = sums[0] + hidden[f] * T.cast(down[ids[c], i * _THREADS + t, f], "float32")
                                total[i * _THREADS + t] = (
                                    T.if_then_else(c == 0, T.float32(0), total[i * _THREADS + t]) + gates[c] * sums[0]
                                )
                        T.evaluate(T.tvm_storage_sync("shared"))
                    for i in T.serial((width + _THREADS - 1) // _THREADS):
                        if i * _THREADS + t < width:
                            y[row, i * _THREADS + t] = T.cast(total[i * _THREADS + t], dtype)

    return moe
