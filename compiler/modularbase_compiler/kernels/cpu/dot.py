"""Products of bytes, four at a time into int32 lanes: by VNNI, by AVX2, or with what every processor has.

Weights come as unsigned bytes, a zero point above their values (128 for int8, 8 for int4); activations are signed.
Sums of a group of 32 stay below 2^23, so they are exact, and every variant gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

Vector = Any  # a TIR expression
Dot = Callable[[Vector, Vector, Vector], Vector]
"""sums [lanes] int32, weights [4 lanes] uint8, activations [4 lanes] int8 -> sums of the products added."""


@dataclass(frozen=True, slots=True)
class Products:
    """How a processor multiplies bytes.

    lanes: int32 of a vector. rows: of x that a tile of 2 vectors holds in registers. signed: whether int8 weights are
    taken without their zero point, so that none is to be subtracted. narrow: for int4 weights, as `dot` but into twice
    as many int16 lanes, in which a group's sums fit; then `widen` makes them int32.
    """

    name: str
    lanes: int
    rows: int
    dot: Dot
    signed: bool = False
    narrow: Dot | None = None

    def widen(self, sums: Vector) -> Vector:
        """Add pairs of int16, which fill the vector `sums`, into its int32 lanes."""
        return _pairs_added(tirx.reinterpret(f"int16x{2 * self.lanes}", sums))


def products(level: str, features: Collection[str]) -> Products:
    """Choose by a target's level and features (see `device.target`)."""
    if level == "x86-64-v4" and "avx512vnni" in features:
        return Products("avx512-vnni", 16, 4, _vnni(16))
    if level in ("x86-64-v3", "x86-64-v4") and "avxvnni" in features:
        return Products("avx-vnni", 8, 2, _vnni(8))
    if level in ("x86-64-v3", "x86-64-v4"):
        return Products("avx2", 8, 2, _avx2, signed=True, narrow=_avx2_narrow)
    return Products("portable", 16, 1, _portable)


def _vnni(lanes: int) -> Dot:
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"  # also what LLVM makes AVX-VNNI of

    def dot(sums: Vector, weights: Vector, activations: Vector) -> Vector:
        return _call(f"int32x{lanes}", name, sums, weights, activations)

    return dot


def _avx2(sums: Vector, weights: Vector, activations: Vector) -> Vector:
    """Multiply signed weights by moving their sign over: |w| times x with the sign of w, as maddubs wants it.

    Two products of at most 127 * 127 fit its int16.
    """
    size = _call("uint8x32", "llvm.abs.v32i8", weights, tirx.const(False, "bool"))
    turned = _call("int8x32", "llvm.x86.avx2.psign.b", activations, weights)
    return sums + _pairs_added(_call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", size, turned))


def _avx2_narrow(sums: Vector, weights: Vector, activations: Vector) -> Vector:
    """Multiply weights of 0 to 15: a group adds 8 pairs of products, at most 8 * 2 * 15 * 127 = 30,480, in int16."""
    pairs = _call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", weights, activations)
    return tirx.reinterpret("int32x8", tirx.reinterpret("int16x16", sums) + pairs)


def _pairs_added(pairs: Vector) -> Vector:
    ones = tirx.Broadcast(tirx.const(1, "int16"), 16)
    return _call("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)


def _portable(sums: Vector, weights: Vector, activations: Vector) -> Vector:
    for byte in range(4):
        places = list(range(byte, 64, 4))
        left, right = (tirx.Shuffle([one], places) for one in (weights, activations))
        sums = sums + tirx.Cast("int32x16", left) * tirx.Cast("int32x16", right)
    return sums


def _call(dtype: str, name: str, *operands: Any) -> Vector:
    return tirx.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *operands)
