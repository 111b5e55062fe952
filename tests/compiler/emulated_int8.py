"""What stands on the CPU for the device functions of the quantised kernels: a warp's lanes meet at its own barrier.

Functions without `asm` are the kernels' own text; those with it are written here after the PTX manual.
"""

from modularbase_compiler.kernels.cuda.integers import SOURCES

_WARP = """
#include <cstring>
#define __device__
#define __forceinline__ inline
#define __ldg(p) (*(p))
#define __fmaf_rn fmaf
#define __fmul_rn(a, b) ((a) * (b))
#define __fadd_rn(a, b) ((a) + (b))
#define __fsub_rn(a, b) ((a) - (b))
#define __fdiv_rn(a, b) ((a) / (b))
#define __float2int_rn(a) ((int)nearbyintf(a))
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, 4); return value; }

struct Warp { std::barrier<> barrier{32}; unsigned words[32][6]; };
static Warp warps[32];
// a kernel's blocks are (x, y) with x = 32 lanes, or x alone
#define LANE() (threadIdx.x % 32)
#define WARP() (warps[BLOCK_X == 32 ? threadIdx.y : threadIdx.x / 32])

inline float __shfl_xor_sync(unsigned, float value, int step) {
  Warp& warp = WARP();
  std::memcpy(warp.words[LANE()], &value, 4);
  warp.barrier.arrive_and_wait();
  std::memcpy(&value, warp.words[LANE() ^ step], 4);
  warp.barrier.arrive_and_wait();
  return value;
}

inline float widened(unsigned bits) {
  unsigned magnitude = bits & 0x7FFF;
  float value = magnitude < 0x400 ? magnitude * 0x1p-24f : ldexpf(1024 + (magnitude & 1023), (magnitude >> 10) - 25);
  return bits & 0x8000 ? -value : value;
}
struct half {
  ushort bits;
  half() = default;
  half(float value) {
    float size = std::fabs(value);
    int power = size < 0x1p-14f ? -14 : std::ilogb(size);
    bits = nearbyintf(std::ldexp(size, 10 - power)) + (power + 14) * 1024;
    bits = (size < 65520 ? bits : 0x7C00) | (std::signbit(value) ? 0x8000 : 0);
  }
  operator float() const { return widened(bits); }
};
"""

# PTX ISA, "Matrix Fragments for mma.m16n8k32": a lane's place in rows, columns and bytes, for 8-bit integers
_MULTIPLY = """
inline void multiply(int* sums, const unsigned* a, const unsigned* b) {
  Warp& warp = WARP();
  std::memcpy(warp.words[LANE()], a, 16);
  std::memcpy(warp.words[LANE()] + 4, b, 8);
  warp.barrier.arrive_and_wait();
  for (int i = 0; i < 4; ++i) {
    int row = LANE() / 4 + i / 2 * 8, column = LANE() % 4 * 2 + i % 2;
    sums[i] = 0x4B400000;
    for (int k = 0; k < 32; ++k) {
      int left = warp.words[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2] >> k % 4 * 8 & 255;
      int right = warp.words[column * 4 + k % 16 / 4][4 + k / 16] >> k % 4 * 8 & 255;
      sums[i] += (int)(signed char)left * (int)(signed char)right;
    }
  }
  warp.barrier.arrive_and_wait();
}
inline float load_scale(const void* from) { return widened(*(const unsigned short*)from); }
inline void load_scales(float* scales, const void* from, float factor) {
  for (int i = 0; i < 4; ++i) scales[i] = widened(((const unsigned short*)from)[i]) * factor;
}
inline void copy_words(void* shared, const void* from) { std::memcpy(shared, from, 16); }
inline void copy_word(void* shared, const void* from) { std::memcpy(shared, from, 4); }
inline void wait_copies() {}
"""


def prelude(block_x):
    """Return the C++ for kernels whose blocks are `block_x` threads wide."""
    kept = [text for text in SOURCES.values() if "asm" not in text]
    return f"#define BLOCK_X {block_x}\n" + _WARP + _MULTIPLY + "\n".join(kept)
