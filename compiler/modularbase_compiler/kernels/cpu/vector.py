"""Vectors of 16 float32: one register with AVX-512, two or four elsewhere (LLVM splits them)."""

from __future__ import annotations

import math
from typing import Any, Final

from tvm import tirx

from modularbase_compiler.kernels.activation import exponent

LANES: Final = 16
LOG2_E: Final = math.log2(math.e)


def fill(value: float) -> Any:
    """Return a vector of a constant."""
    return tirx.Broadcast(tirx.const(value, "float32"), LANES)


def fill_int(value: int) -> Any:
    """Return an int32 vector of a constant."""
    return tirx.Broadcast(tirx.const(value, "int32"), LANES)


def exp2(x: Any) -> Any:
    """Return 2^x of a vector in [-126, 126], relative error 2e-7 (minimax polynomial of degree 5).

    `llvm.exp2.v16f32` becomes 16 calls of the C library.
    """
    x = tirx.max(tirx.min(x, fill(126.0)), fill(-126.0))
    whole = tirx.floor(x)
    part = x - whole
    value = fill(1.8775767e-3)
    for coefficient in (8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1):
        value = value * part + fill(coefficient)
    bits = tirx.shift_left(tirx.Cast("int32x16", whole) + fill_int(127), fill_int(23))
    return value * tirx.reinterpret("float32x16", bits)


def activated(x: Any, activation: str) -> Any:
    """Return silu(x) or gelu(x) of a vector, whichever `activation` applies."""
    return x / (fill(1.0) + exp2(exponent(x, activation, fill) * fill(-LOG2_E)))


def fold(values: Any, combine: Any) -> Any:
    """Combine the 16 elements of a buffer pairwise, in a fixed order."""
    items = [values[i] for i in range(LANES)]
    while len(items) > 1:
        items = [combine(a, b) for a, b in zip(items[::2], items[1::2], strict=True)]
    return items[0]
