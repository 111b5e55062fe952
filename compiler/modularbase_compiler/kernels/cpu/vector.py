"""Vectors of 16 float32: one register with AVX-512, two or four elsewhere (LLVM splits them)."""

from __future__ import annotations

import math
from typing import Any, Final

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import exponent

LANES: Final = 16
LOG2_E: Final = math.log2(math.e)


def fill(value: float) -> Any:
    """Return a vector of a constant."""
    return tirx.Broadcast(tirx.const(value, "float32"), LANES)


def fill_int(value: int) -> Any:
    """Return an int32 vector of a constant."""
    return tirx.Broadcast(tirx.const(value, "int32"), LANES)


def prefetch(element: Any) -> Any:
    """Ask L2 for the cache line of a buffer's element, which may lie past the buffer's end: a hint, never a fault."""
    read, second, data = (tirx.const(value, "int32") for value in (0, 2, 1))
    return T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), read, second, data)


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


def weight(x: Any) -> Any:
    """Return 2^x of a vector in [-inf, 0], relative error 2e-7; exactly 1 at 0, exactly 0 below -126.5.

    The whole part is rounded by adding 1.5 * 2^23, whose sum also holds the exponent's bits: 11 instructions.
    """
    magic = fill(12582912.0 + 127.0)
    x = tirx.max(x, fill(-127.0))
    bits = tirx.reinterpret("int32x16", x + magic)
    part = x - (tirx.reinterpret("float32x16", bits) - magic)  # TVM takes (x + magic) - magic for x
    value = fill(1.3264727e-3)
    for coefficient in (9.6715130e-3, 5.5507336e-2, 2.4022242e-1, 6.9314700e-1, 1.0):
        value = value * part + fill(coefficient)
    return value * tirx.reinterpret("float32x16", tirx.shift_left(bits, fill_int(23)))


def activated(x: Any, activation: str) -> Any:
    """Return silu(x) or gelu(x) of a vector, whichever `activation` applies."""
    return x / (fill(1.0) + exp2(exponent(x, activation, fill) * fill(-LOG2_E)))


def fold(values: Any, combine: Any) -> Any:
    """Combine the 16 elements of a buffer pairwise, in a fixed order."""
    items = [values[i] for i in range(LANES)]
    while len(items) > 1:
        items = [combine(a, b) for a, b in zip(items[::2], items[1::2], strict=True)]
    return items[0]
