"""Device functions of the quantised kernels: what a warp does in one instruction or a few, as CUDA source.

A warp multiplies 16 rows of weights by 8 rows of activations over a group of 32, exactly, in int32. Lane l = 4r + c
holds of the weights the rows r and r + 8, of the activations the row r, each at the columns 4c.. and 16 + 4c.., and
of the result the rows r and r + 8 of the weights against the rows 2c and 2c + 1 of the activations.
"""

from __future__ import annotations

from typing import Any, Final

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call

SOURCES: Final = {
    # 16 bytes of weights at once, past the cache of what is read again
    "load_words": """
__forceinline__ __device__ void load_words(unsigned* words, const void* from) {
  uint4 read = __ldg((const uint4*)from);
  words[0] = read.x; words[1] = read.y; words[2] = read.z; words[3] = read.w;
}
""",
    "load_word": """
__forceinline__ __device__ unsigned load_word(const void* from) { return *(const unsigned*)from; }
""",
    # four scales of float16 as float32, `factor` times
    "load_scales": """
__forceinline__ __device__ float widened(unsigned half_bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)half_bits));
  return value;
}
__forceinline__ __device__ void load_scales(float* scales, const void* from, float factor) {
  uint2 read = __ldg((const uint2*)from);
  scales[0] = widened(read.x & 65535) * factor; scales[1] = widened(read.x >> 16) * factor;
  scales[2] = widened(read.y & 65535) * factor; scales[3] = widened(read.y >> 16) * factor;
}
""",
    "load_scale": """
__forceinline__ __device__ float load_scale(const void* from) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(*(const unsigned short*)from));
  return value;
}
""",
    # the sums start at the bits of 1.5 * 2^23: there a float's last bit is 1, so that the bits of 1.5 * 2^23 + s are
    # those of 1.5 * 2^23 plus s, and a subtraction makes a float of s where a conversion would take longer
    "multiply": """
__forceinline__ __device__ void multiply(int* sums, const unsigned* w, const unsigned* q) {
  for (int i = 0; i < 4; ++i) sums[i] = 0x4B400000;
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(q[0]), "r"(q[1]));
#else
  for (int half = 0; half < 2; ++half)
    for (int row = 0; row < 2; ++row)
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+r"(sums[row * 2]), "+r"(sums[row * 2 + 1])
                   : "r"(w[half * 2 + row]), "r"(q[half]));
#endif
}
""",
    "add_sums": """
__forceinline__ __device__ void add_sums(float* total, const int* sums, const float* w, const float* q) {
  for (int i = 0; i < 4; ++i)
    total[i] = __fmaf_rn(__fsub_rn(__int_as_float(sums[i]), 12582912.f), __fmul_rn(w[i / 2], q[i % 2]), total[i]);
}
""",
    # a value of 4 bits in the high half of a byte is 16 times itself, its sign in place: a mask, no subtraction
    "unpack": """
__forceinline__ __device__ void unpack(unsigned* words, const unsigned* packed) {
  words[0] = packed[0] << 4 & 0xF0F0F0F0u; words[1] = packed[1] << 4 & 0xF0F0F0F0u;
  words[2] = packed[0] & 0xF0F0F0F0u; words[3] = packed[1] & 0xF0F0F0F0u;
}
""",
    # into shared memory, from sm_80 on while the warp goes on; `wait_copies` before the barrier after it
    "copy_words": """
__forceinline__ __device__ void copy_words(void* shared, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from) : "memory");
#else
  *(uint4*)shared = *(const uint4*)from;
#endif
}
""",
    "copy_word": """
__forceinline__ __device__ void copy_word(void* shared, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from) : "memory");
#else
  *(unsigned*)shared = *(const unsigned*)from;
#endif
}
""",
    "wait_copies": """
__forceinline__ __device__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
""",
    "warp_greatest": """
__forceinline__ __device__ float warp_greatest(float value) {
  for (int step = 16; step; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}
""",
    "warp_sum": """
__forceinline__ __device__ float warp_sum(float value) {
  for (int step = 16; step; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}
""",
    # the compiler is told to round divisions and products as it likes; here the rounding is the definition's
    "group_scale": """
__forceinline__ __device__ float group_scale(float greatest, float least) {
  return __fmul_rn(fmaxf(greatest, least), 0.00787401572f);
}
""",
    "group_value": """
__forceinline__ __device__ int group_value(float value, float scale) {
  return __float2int_rn(__fmul_rn(value, __fdiv_rn(1.f, scale)));
}
""",
}
"""By name. All but those with `asm` are C++ as it stands, given the CUDA functions that they call."""


def load_words(words: Any, at: Any, source: Any) -> Any:
    """Read 16 bytes at `source` into words[at..at+3]."""
    return _call("load_words", words.access_ptr("w", offset=at, extent=4), tirx.address_of(source))


def load_word(source: Any) -> Any:
    """Return 4 bytes at `source` as uint32."""
    return _call("load_word", tirx.address_of(source), dtype="uint32")


def load_scales(scales: Any, at: Any, source: Any, factor: float) -> Any:
    """Read four scales at `source`, times a factor, into scales[at..at+3]."""
    values = scales.access_ptr("w", offset=at, extent=4)
    return _call("load_scales", values, tirx.address_of(source), tirx.const(factor, "float32"))


def load_scale(source: Any) -> Any:
    """Return the scale at `source` as float32."""
    return _call("load_scale", tirx.address_of(source), dtype="float32")


def unpack(words: Any, packed: Any, at: Any) -> Any:
    """Make four words of int8, 16 times as large, of the int4 in packed[at..at+1]."""
    return _call("unpack", words.access_ptr("w", extent=4), packed.access_ptr("r", offset=at, extent=2))


def multiply(sums: Any, w: Any, w_at: Any, q: Any, q_at: Any) -> Any:
    """Multiply w[w_at..w_at+3] by q[q_at..q_at+1] into the bits of sums[0..3], for `add_sums`."""
    factors = w.access_ptr("r", offset=w_at, extent=4), q.access_ptr("r", offset=q_at, extent=2)
    return _call("multiply", sums.access_ptr("w", extent=4), *factors)


def add_sums(total: Any, at: Any, sums: Any, w: Any, w_at: Any, q: Any, q_at: Any) -> Any:
    """Add what `multiply` made, times w[w_at..w_at+1] by q[q_at..q_at+1], to total[at..at+3]."""
    factors = w.access_ptr("r", offset=w_at, extent=2), q.access_ptr("r", offset=q_at, extent=2)
    return _call("add_sums", total.access_ptr("rw", offset=at, extent=4), sums.access_ptr("r", extent=4), *factors)


def copy_words(shared: Any, at: Any, source: Any) -> Any:
    """Copy 16 bytes at `source` into shared memory, see `wait_copies`.

    Said to be a read: TVM puts barriers around what it sees written, and cannot where that hangs on a condition. The
    caller has to put those that are needed.
    """
    return _call("copy_words", shared.access_ptr("r", offset=at, extent=16), tirx.address_of(source))


def copy_word(shared: Any, at: Any, source: Any) -> Any:
    """Copy 4 bytes so."""
    return _call("copy_word", shared.access_ptr("r", offset=at, extent=1), tirx.address_of(source))


def wait_copies() -> Any:
    """Wait for this thread's copies; a barrier after it waits for all."""
    return _call("wait_copies")


def warp_greatest(value: Any) -> Any:
    """Return the greatest of a warp's values, in every lane."""
    return _call("warp_greatest", value, dtype="float32")


def warp_sum(value: Any) -> Any:
    """Return the sum of a warp's values, in every lane."""
    return _call("warp_sum", value, dtype="float32")


def group_scale(greatest: Any, least: float) -> Any:
    """Return the scale of a group of activations."""
    return _call("group_scale", greatest, tirx.const(least, "float32"), dtype="float32")


def group_value(value: Any, scale: Any) -> Any:
    """Return one of its values as an integer."""
    return _call("group_value", value, scale, dtype="int32")


def _call(name: str, *arguments: Any, dtype: str = "void") -> Any:
    """Return the call of one of these functions, whose source then comes with the kernel."""
    return cuda_func_call(name, *arguments, source_code=SOURCES[name], return_type=dtype)
