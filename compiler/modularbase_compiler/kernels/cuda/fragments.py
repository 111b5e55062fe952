"""The tensor cores' product of 16 x 16 by 16 x 8, float16 with float32 sums, and who holds what of it.

Of a warp, lane 4g + q holds rows g and g + 8 of the left operand, column g of the right one, and of the sums rows g and
g + 8 in columns 2q and 2q + 1. Which four of the 16 terms it holds of each is free, as long as both operands agree: so
that a lane's terms are neighbours in memory and come by one wide load. A column's bits depend on no other column, and
a row's on no other row.
"""

from __future__ import annotations

from typing import Any, Final

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

WARP: Final = 32
OCTET: Final = 8
"""Halves in the widest load, 16 bytes."""

_NAME: Final = "multiply_16x8"
# sm_75 sums 8 terms an instruction; later ones 16, at twice the pace
_SOURCE: Final = f"""
__device__ __forceinline__ void {_NAME}(void* sums, const void* low, const void* high, const void* right) {{
  float* c = (float*)sums;
  const uint2 a = *(const uint2*)low, b = *(const uint2*)high, r = *(const uint2*)right;
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(b.x), "r"(a.y), "r"(b.y), "r"(r.x), "r"(r.y));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%0, %1, %2, %3}}, {{%4, %5}}, {{%6}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(b.x), "r"(r.x));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%0, %1, %2, %3}}, {{%4, %5}}, {{%6}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.y), "r"(b.y), "r"(r.y));
#endif
}}
"""


def multiply(sums: Any, low: Any, high: Any, right: Any) -> Any:
    """Return the statement sums += left * right; each operand is the first of four elements.

    low, high: terms of rows g and g + 8. right: those of column g. sums: rows g, g, g + 8, g + 8 float32, two columns
    each. All begin at multiples of 8 bytes.
    Every lane of a warp must come by.
    """
    operands = [_address(item) for item in (sums, low, high, right)]
    return T.evaluate(T.cuda.func_call(_NAME, *operands, source_code=_SOURCE))


def copy(to: Any, source: Any, size_bytes: int) -> Any:
    """Return the statement that copies 8 or 16 bytes from one element on, by one access of that width.

    TVM's own vector accesses fall apart into elements where it cannot prove an index aligned. It also sees no access
    of shared memory in these: barriers are the kernel's own.
    """
    kind = "uint4" if size_bytes == 16 else "uint2"
    name = f"copy_{size_bytes}"
    source_code = f"""
__device__ __forceinline__ void {name}(void* to, const void* from) {{
  *({kind}*)to = *(const {kind}*)from;
}}
"""
    return T.evaluate(T.cuda.func_call(name, _address(to), _address(source), source_code=source_code))


def _address(item: Any) -> Any:
    """Return the address of a buffer's element.

    By a bare `address_of`, TVM would take a buffer of the block's own for as large as its last element addressed.
    """
    if item.source.scope() == "global":
        return T.address_of(item)
    (index,) = item.indices
    return T.handle_add_byte_offset(item.source.data, index * (4 if str(item.source.dtype) == "float32" else 2))
