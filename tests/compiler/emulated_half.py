"""Run generated CUDA source on the CPU: float16, shuffles and tensor cores too, a fiber for each of a block's threads.

What a warp does together, its lanes do when the last has come. Products of tensor cores are summed in float32, in
order; the hardware's own order is not known.
"""

from __future__ import annotations

import ctypes
import re
import subprocess

import tvm

from tests.compiler.emulation import generate

_PRELUDE = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <ucontext.h>
#include <vector>
typedef unsigned int uint;
struct Index { int x, y, z; };
struct half {
  uint16_t bits;
  half() = default;
  template <typename N> half(N value) : bits(_cvtss_sh((float)value, 0)) {}
  operator float() const { return _cvtsh_ss(bits); }
};
struct half2 { half x, y; };
struct half4 { half x, y, z, w; };
struct float4 { float x, y, z, w; };
struct uint2 { uint x, y; };
struct uint4 { uint x, y, z, w; };
static uint2 make_uint2(uint x, uint y) { return {x, y}; }
static uint4 make_uint4(uint x, uint y, uint z, uint w) { return {x, y, z, w}; }
static half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static half2 make_half2(half x, half y) { return {x, y}; }
static half __float2half_rn(float value) { return half(value); }
static uint __pack_half2(half x, half y) { return (uint)y.bits << 16 | x.bits; }
using std::max;
using std::min;
#define __global__
#define __launch_bounds__(n)
#define __restrict__
#define __expf expf

static Index threadIdx, blockIdx;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static long waits;
struct Meeting { int expected, arrived = 0, round = 0; };
static Meeting block_meeting;
static std::vector<Meeting> warp_meetings;
struct Lane { unsigned words[8]; };
static std::vector<Lane> lanes;

static void pause() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void meet(Meeting& meeting) {
  int round = meeting.round;
  if (++meeting.arrived == meeting.expected) { meeting.arrived = 0; ++meeting.round; waits = 0; return; }
  while (meeting.round == round) {
    if (++waits > 100000) { fprintf(stderr, "threads wait for others that never come\\n"); abort(); }
    pause();
  }
}
static Meeting& warp() { return warp_meetings[threadIdx.x / 32]; }
static void __syncthreads() { meet(block_meeting); }
template <typename N> static N __shfl_xor_sync(uint, N value, int mask, int) {
  memcpy(lanes[threadIdx.x].words, &value, sizeof value);
  meet(warp());
  memcpy(&value, lanes[threadIdx.x ^ mask].words, sizeof value);
  meet(warp());
  return value;
}
static float term(int lane, int word, int which) { half v[2]; memcpy(v, &lanes[lane].words[word], 4); return v[which]; }
static void copy_8(void* to, const void* from) { memcpy(to, from, 8); }
static void copy_16(void* to, const void* from) { memcpy(to, from, 16); }
static void multiply_16x8(void* sums, const void* low, const void* high, const void* right) {
  float* c = (float*)sums;
  Lane& mine = lanes[threadIdx.x];
  memcpy(mine.words, low, 8); memcpy(mine.words + 2, high, 8); memcpy(mine.words + 4, right, 8);
  meet(warp());
  int first = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i)
    for (int word = 0; word < 2; ++word)
      for (int other = 0; other < 4; ++other)
        for (int which = 0; which < 2; ++which)
          c[i] += term(first + g * 4 + other, i / 2 * 2 + word, which)
              * term(first + (q * 2 + i % 2) * 4 + other, 4 + word, which);
  meet(warp());
}
"""

_STATE = """
static int64_t* scalars;
static void** buffers;
static std::vector<char> done;
"""

_LAUNCH = """
static void run_{name}(int t) {{ {name}({arguments}); done[t] = 1; for (;;) pause(); }}
extern "C" void launch_{name}(int gx, int gy, int gz, int threads, void** p, int64_t* s) {{
  buffers = p; scalars = s;
  fibers.resize(threads); lanes.resize(threads); done.resize(threads);
  std::vector<char> stacks((size_t)threads << 18);
  for (int z = 0; z < gz; ++z)
   for (int y = 0; y < gy; ++y)
    for (int x = 0; x < gx; ++x) {{
      blockIdx = {{x, y, z}};
      block_meeting = {{threads}};
      warp_meetings.assign(threads / 32, {{32}});
      for (int t = 0; t < threads; ++t) {{
        done[t] = 0;
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = &stacks[(size_t)t << 18];
        fibers[t].uc_stack.ss_size = 1 << 18;
        makecontext(&fibers[t], (void (*)())run_{name}, 1, t);
      }}
      for (bool more = true; more;) {{
        more = false;
        for (int t = 0; t < threads; ++t)
          if (!done[t]) {{
            threadIdx = {{t, 0, 0}};
            swapcontext(&scheduler, &fibers[t]);
            more = true;
          }}
      }}
    }}
}}
"""


class EmulatedHalf:
    """The launches of one kernel, in the order of its source; call one with its grid, its threads and its values."""

    def __init__(self, kernel, folder):
        # what is common to all threads would become parameters of its own
        with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
            source = generate(kernel)
        body = source[source.index('extern "C" __global__') :].replace("__shared__ alignas(64)", "alignas(64) static")
        launches, self._arguments = "", []
        for name, parameters in re.findall(r"(\w+_kernel\w*)\((.*?)\) \{", body):
            declared = [item.strip() for item in parameters.split(",")]
            buffers = [item.split()[-1].removesuffix("_ptr") for item in declared if "*" in item]
            scalars = [item.split()[-1] for item in declared if "*" not in item]
            values = ", ".join(
                f"({item.split('*')[0]}*)buffers[{buffers.index(item.split()[-1].removesuffix('_ptr'))}]"
                if "*" in item
                else f"scalars[{scalars.index(item.split()[-1])}]"
                for item in declared
            )
            launches += _LAUNCH.format(name=name, arguments=values)
            self._arguments.append((f"launch_{name}", buffers, scalars))
        path, library = folder / "kernel.cpp", folder / f"{self._arguments[0][0]}.so"
        path.write_text(_PRELUDE + body + _STATE + launches)
        options = ["-std=c++20", "-O0", "-mf16c", "-fno-strict-aliasing", "-w", "-shared", "-fPIC"]
        subprocess.run(["g++", *options, str(path), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, launch, grid, threads, **values):
        name, buffers, scalars = self._arguments[launch]
        assert all(values[item].flags.c_contiguous for item in buffers)
        pointers = (ctypes.c_void_p * len(buffers))(*(values[item].ctypes.data for item in buffers))
        numbers = (ctypes.c_int64 * max(1, len(scalars)))(*(int(values[item]) for item in scalars))
        getattr(self._library, name)(
            *(ctypes.c_int(int(size)) for size in (*grid, *[1] * (3 - len(grid)), threads)), pointers, numbers
        )
