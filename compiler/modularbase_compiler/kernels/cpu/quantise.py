"""Rows to int8 by groups of 32, as `linear_groups` reads them; what made the rows (a norm, a gate) is done on the way.

q = rint(x / s) with s = max|x| / 127 of the group; see `graph.quantised.quantise_rows`.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED
from modularbase_compiler.kernels.cpu.vector import activated, fold
from modularbase_core.device.metadata import zero_point
from modularbase_core.sdk.parameters import LEAST_MAXIMUM
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP

_SERIAL_ROWS = 4  # below this, starting threads costs more than the rows


def quantise(width: int, bits: int, *, epsilon: float | None = None, form: str = "") -> Any:
    """Make the kernel: x [T, K], (w [K]) -> q [T, K] int8, scale [T, K/32], zero [T, K/32] int32.

    bits: of the weights that these rows meet; zero is minus their zero point times the sum of a group of q.
    epsilon: x is normalised first, by RMSNorm with weights w. form: x [T, 2K] or [T, K] is what an activation of this
    form (see `activation`) makes the rows of.
    """
    groups, point = width // GROUP, zero_point(bits)
    gated, ungated, normed = form in GATED, form not in ("", *GATED), epsilon is not None
    read = 2 * width if gated else width

    def add(a: Any, b: Any) -> Any:
        return a + b

    @T.prim_func(s_tir=True)
    def quantise(x_: T.handle, w_: T.handle, q_: T.handle, s_: T.handle, z_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, read), "float32")
        w = T.match_buffer(w_, (width,), "float32")
        q = T.match_buffer(q_, (rows, width), "int8")
        scale = T.match_buffer(s_, (rows, groups), "float32")
        zero = T.match_buffer(z_, (rows, groups), "int32")

        @T.inline
        def convert(value, whole, sums, one, row):
            # one: 0 the reciprocal of the row's root mean square, 1 a group's scale
            if normed:
                value[T.ramp(0, 1, 16)] = T.broadcast(T.float32(0), 16)
                for i in T.serial(width // 16):
                    value[T.ramp(0, 1, 16)] = (
                        value[T.ramp(0, 1, 16)] + x[row, T.ramp(i * 16, 1, 16)] * x[row, T.ramp(i * 16, 1, 16)]
                    )
                one[0] = T.float32(1) / T.sqrt(fold(value, add) / T.float32(width) + T.float32(epsilon or 0))
            for g in T.serial(groups):
                for i in T.unroll(2):
                    if normed:
                        value[T.ramp(i * 16, 1, 16)] = (
                            x[row, T.ramp(g * GROUP + i * 16, 1, 16)]
                            * T.broadcast(one[0], 16)
                            * w[T.ramp(g * GROUP + i * 16, 1, 16)]
                        )
                    elif gated:
                        value[T.ramp(i * 16, 1, 16)] = (
                            activated(x[row, T.ramp(g * GROUP + i * 16, 1, 16)], form)
                            * x[row, T.ramp(width + g * GROUP + i * 16, 1, 16)]
                        )
                    elif ungated:
                        value[T.ramp(i * 16, 1, 16)] = activated(x[row, T.ramp(g * GROUP + i * 16, 1, 16)], form)
                    else:
                        value[T.ramp(i * 16, 1, 16)] = x[row, T.ramp(g * GROUP + i * 16, 1, 16)]
                one[1] = T.max(_greatest(value), T.float32(LEAST_MAXIMUM)) * T.float32(1 / 127)
                scale[row, g] = one[1]
                for i in T.unroll(2):
                    whole[T.ramp(0, 1, 16)] = T.cast(
                        T.nearbyint(value[T.ramp(i * 16, 1, 16)] * T.broadcast(T.float32(1) / one[1], 16)), "int32x16"
                    )
                    q[row, T.ramp(g * GROUP + i * 16, 1, 16)] = T.cast(whole[T.ramp(0, 1, 16)], "int8x16")
                    if i == 0:
                        sums[T.ramp(0, 1, 16)] = whole[T.ramp(0, 1, 16)]
                    else:
                        sums[T.ramp(0, 1, 16)] = sums[T.ramp(0, 1, 16)] + whole[T.ramp(0, 1, 16)]
                zero[row, g] = _reduce("add", sums[T.ramp(0, 1, 16)]) * -point

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    T.reads()
                    T.writes()
                    value = T.sblock_alloc_buffer((32,), "float32")
                    whole = T.sblock_alloc_buffer((16,), "int32")
                    sums = T.sblock_alloc_buffer((16,), "int32")
                    one = T.sblock_alloc_buffer((2,), "float32")
                    convert(value, whole, sums, one, row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    T.reads()
                    T.writes()
                    value = T.sblock_alloc_buffer((32,), "float32")
                    whole = T.sblock_alloc_buffer((16,), "int32")
                    sums = T.sblock_alloc_buffer((16,), "int32")
                    one = T.sblock_alloc_buffer((2,), "float32")
                    convert(value, whole, sums, one, row)

    kept = (True, normed, True, True, True)
    parameters = [item for item, keep in zip(quantise.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, quantise.body, quantise.ret_type, quantise.attrs)


def _greatest(value: Any) -> Any:
    """Return the greatest size of 32 floats, by their bits: without the sign they are ordered as integers."""
    bits = [tirx.reinterpret("int32x16", value[T.ramp(i * 16, 1, 16)]) for i in range(2)]
    low, high = (tirx.bitwise_and(one, tirx.Broadcast(tirx.const(0x7FFFFFFF, "int32"), 16)) for one in bits)
    return tirx.reinterpret("float32", _reduce("smax", tirx.max(low, high)))


def _reduce(operation: str, vector: Any) -> Any:
    """Combine 16 integers; exact, so in any order."""
    name = f"llvm.vector.reduce.{operation}.v16i32"
    return tirx.call_llvm_pure_intrin("int32", T.llvm_lookup_intrinsic_id(name), vector)
