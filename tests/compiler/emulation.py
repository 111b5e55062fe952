"""Run generated CUDA source on the CPU: a thread for each of a block's threads, blocks one after another.

No GPU is at hand where these tests run. This shows what the kernels compute, not how the device runs them.
"""

from __future__ import annotations

import ctypes
import re
import subprocess

import numpy as np
import tvm
from modularbase_compiler.target import gpu_target

from modularbase_core.device.target import cuda_target

_PRELUDE = """
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>
struct Index { int x, y, z; };
static thread_local Index threadIdx;
static Index blockIdx;
static std::barrier<>* block_barrier;
#define __global__
#define __launch_bounds__(n)
#define __restrict__
#define __syncthreads() block_barrier->arrive_and_wait()
#define __expf expf
using std::max;
using std::min;
"""

_LAUNCH = """
extern "C" void launch_{name}(int gx, int gy, int bx, int by, void** p, int64_t* s) {{
  std::barrier<> barrier(bx * by);
  block_barrier = &barrier;
  std::vector<std::thread> threads;
  for (int t = 0; t < bx * by; ++t)
    threads.emplace_back([=, &barrier] {{
      threadIdx = {{t % bx, t / bx, 0}};
      for (int y = 0; y < gy; ++y)
        for (int x = 0; x < gx; ++x) {{
          barrier.arrive_and_wait();
          if (t == 0) blockIdx = {{x, y, 0}};
          barrier.arrive_and_wait();
          {name}({arguments});
        }}
    }});
  for (auto& thread : threads) thread.join();
}}
"""


class Emulated:
    """One kernel; call it with its grid, its block, and its buffers and scalars by name.

    prelude: C++ that stands for the device functions it calls. A function that launches one of several kernels is told
    which by `part`.
    """

    def __init__(self, kernel, folder, prelude=""):
        source = generate(kernel)
        found = list(re.finditer(r"(\w+_kernel(?:_\d+)?)\(([^;{]*?)\) \{", source))
        self._parts = [_Part(match.group(1), match.group(2)) for match in found]
        body = source[source.index('extern "C" __global__') :].replace("__shared__ alignas(64)", "alignas(64) static")
        path, library = folder / "kernel.cpp", folder / f"{found[0].group(1)}.so"
        path.write_text(_PRELUDE + prelude + body + "".join(part.launcher for part in self._parts))
        command = ["g++", "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", str(path), "-o", str(library)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def __call__(self, grid, block, part=0, **values):
        self._parts[part].launch(self._library, (*grid, *block), values)


class _Part:
    def __init__(self, name, parameters):
        self._name = name
        declared = [item.strip() for item in parameters.split(",")]
        self._buffers = [item.split()[-1].removesuffix("_ptr") for item in declared if "*" in item]
        self._scalars = [item.split()[-1] for item in declared if "*" not in item]
        arguments = ", ".join(
            f"({item.split('*')[0].strip()}*)p[{self._buffers.index(item.split()[-1].removesuffix('_ptr'))}]"
            if "*" in item
            else f"s[{self._scalars.index(item.split()[-1])}]"
            for item in declared
        )
        self.launcher = _LAUNCH.format(name=name, arguments=arguments)

    def launch(self, library, sizes, values):
        for name in self._buffers:
            assert values[name].flags.c_contiguous
        pointers = (ctypes.c_void_p * len(self._buffers))(*(values[name].ctypes.data for name in self._buffers))
        scalars = (ctypes.c_int64 * max(1, len(self._scalars)))(*(int(values[name]) for name in self._scalars))
        getattr(library, f"launch_{self._name}")(*(ctypes.c_int(int(size)) for size in sizes), pointers, scalars)


def generate(kernel) -> str:
    """Return a kernel's CUDA source; TVM's own compilation of it is left out."""
    callback = "tvm_callback_cuda_compile"
    before = tvm.get_global_func(callback)
    tvm.register_global_func(callback, lambda code, *rest: code, override=True)
    try:
        with gpu_target(cuda_target(("sm_75",)), "sm_75") as target:
            built = tvm.compile(kernel, target)
    finally:
        tvm.register_global_func(callback, before, override=True)
    return built.mod.imports[0].inspect_source()


def zeros(*shape):
    return np.zeros(shape, np.float32)
