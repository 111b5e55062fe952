"""Kernels of the CPU compiled by themselves, for processors that this one can stand for."""

import tvm
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.target import host_target

from modularbase_core.device.target import Target, cpu_target


def compiling(level, features=()):
    """Return what compiles a kernel, once, for a processor level; vectors wider than its registers are split."""
    mine = cpu_target()
    target = Target(name="cpu", system=mine.system, machine=mine.machine, level=level, features=features)
    kernels, built = CpuKernels(level, features, vendor="intel"), {}  # for which kernels also prefetch

    def compile_kernel(name, *shape, **choices):
        key = (name, shape, tuple(choices.items()))
        if key not in built:
            built[key] = tvm.compile(getattr(kernels, name)(*shape, **choices), host_target(target))
        return built[key]

    return compile_kernel
