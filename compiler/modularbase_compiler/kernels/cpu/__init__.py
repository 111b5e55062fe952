"""The CPU's kernels: float32, explicit vectors, weights of linear layers packed by 32 columns."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from modularbase_compiler.kernels.cpu.activation import activation
from modularbase_compiler.kernels.cpu.append import append_hidden, append_kv
from modularbase_compiler.kernels.cpu.attend import attend
from modularbase_compiler.kernels.cpu.linear import linear
from modularbase_compiler.kernels.cpu.moe import moe
from modularbase_compiler.kernels.cpu.rms_norm import rms_norm


class CpuKernels:
    """The kernel set of `cpu`; `level` is the processor's (see `device.target`)."""

    linear_layout = "n32k"
    dtype = "float32"

    def __init__(self, level: str) -> None:
        # accumulators must fit the registers: 32 of 16 lanes with AVX-512, 16 of 8 before
        self._tile = (6, 2) if level == "x86-64-v4" else (3, 1)

    def linear(self, n: int, k: int, *, bias: bool, residual: bool) -> Any | None:
        """Make the packed kernel."""
        return _linear(n, k, bias=bias, residual=residual, tile=self._tile)

    def rms_norm(self, width: int, epsilon: float) -> Any | None:
        """Make the vector kernel, for widths of whole vectors."""
        return None if width % 16 else _rms_norm(width, epsilon)

    def activation(self, width: int, form: str) -> Any | None:
        """Make the vector kernel, for widths of whole vectors."""
        return None if width % 16 else _activation(width, form)

    def append_kv(self, layers: int, heads: int, kv_heads: int, size: int) -> Any:
        """Make the kernel."""
        return _append_kv(layers, heads, kv_heads, size)

    def append_hidden(self, width: int) -> Any:
        """Make the kernel."""
        return _append_hidden(width)

    def attend(self, layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
        """Make the kernel."""
        return _attend(layers, heads, kv_heads, size, positions)

    def moe(self, experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
        """Make the kernel."""
        return _moe(experts, chosen, width, ffn, activation)


# a kernel takes 0.1 s to parse and is asked for by every layer
_linear = lru_cache(linear)
_rms_norm = lru_cache(rms_norm)
_activation = lru_cache(activation)
_append_kv = lru_cache(append_kv)
_append_hidden = lru_cache(append_hidden)
_attend = lru_cache(attend)
_moe = lru_cache(moe)
