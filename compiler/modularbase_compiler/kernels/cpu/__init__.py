"""The CPU's kernels: float32, explicit vectors, weights of linear layers packed by 32 columns."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from modularbase_compiler.inlines import hasten_inlines
from modularbase_compiler.kernels.cpu.activation import activation
from modularbase_compiler.kernels.cpu.append import append_hidden, append_kv
from modularbase_compiler.kernels.cpu.attend import attend
from modularbase_compiler.kernels.cpu.dot import products
from modularbase_compiler.kernels.cpu.embed_groups import embed_groups
from modularbase_compiler.kernels.cpu.linear import linear
from modularbase_compiler.kernels.cpu.linear_groups import linear_groups
from modularbase_compiler.kernels.cpu.moe import moe
from modularbase_compiler.kernels.cpu.quantise import quantise
from modularbase_compiler.kernels.cpu.rms_norm import rms_norm
from modularbase_compiler.kernels.cpu.route import combine, route


class CpuKernels:
    """The kernel set of `cpu`; `level`, `features` and `vendor` are the processor's (see `device.target`).

    Accumulators and other small buffers are under 1 KB and of the default scope: TVM puts those on the stack, from
    where LLVM takes them into registers. In any other scope they are heap memory, and every sum is stored as well.
    """

    def __init__(self, level: str, features: Collection[str] = (), vendor: str = "") -> None:
        hasten_inlines()
        self._products = products(level, features)
        # on a Sapphire Rapids, of 32 GB/s that can be read, a lone row reads int8 weights at 31 with and 28 without,
        # int4 at 29 and 21 (into L1: 26); on a Zen 4, whose own prefetchers do better, it cost 10 to 20 %
        self._ahead_bytes = 4096 if vendor == "intel" else 0
        # accumulators must fit the registers: 32 of 16 lanes with AVX-512, 16 of 8 before
        self._tile = (6, 2) if level == "x86-64-v4" else (3, 1)
        self._pairs = 12 if level == "x86-64-v4" else 3

    def linear(self, n: int, k: int, *, bias: bool, residual: bool, stored: str) -> Any:
        """Make the packed kernel."""
        return _linear(
            n, k, bias=bias, residual=residual, stored=stored, tile=self._tile, ahead_bytes=self._ahead_bytes
        )

    def linear_groups(self, n: int, k: int, bits: int, *, bias: bool, residual: bool) -> Any:
        """Make the kernel that fits the processor."""
        return _linear_groups(
            n, k, bits, bias=bias, residual=residual, products=self._products, ahead_bytes=self._ahead_bytes
        )

    def expert_groups(self, n: int, k: int, bits: int, *, experts: int, shared: int) -> Any:
        """Make the kernel that fits the processor."""
        return _linear_groups(
            n, k, bits, experts=experts, shared=shared, products=self._products, ahead_bytes=self._ahead_bytes
        )

    def route(self, experts: int, chosen: int) -> Any:
        """Make the kernel."""
        return _route(experts, chosen)

    def combine(self, chosen: int, width: int) -> Any:
        """Make the kernel."""
        return _combine(chosen, width)

    def quantise(self, width: int, bits: int, *, epsilon: float | None = None, form: str = "") -> Any:
        """Make the kernel."""
        return _quantise(width, bits, epsilon=epsilon, form=form)

    def embed_groups(self, rows: int, width: int, bits: int) -> Any:
        """Make the kernel."""
        return _embed_groups(rows, width, bits)

    def rms_norm(self, width: int, epsilon: float) -> Any:
        """Make the kernel."""
        return _rms_norm(width, epsilon)

    def activation(self, width: int, form: str) -> Any:
        """Make the kernel."""
        return _activation(width, form)

    def append_kv(self, layers: int, heads: int, kv_heads: int, size: int) -> Any:
        """Make the kernel."""
        return _append_kv(layers, heads, kv_heads, size)

    def append_hidden(self, width: int) -> Any:
        """Make the kernel."""
        return _append_hidden(width)

    def attend(self, layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
        """Make the kernel."""
        return _attend(layers, heads, kv_heads, size, positions, most=self._pairs)

    def moe(self, experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
        """Make the kernel."""
        return _moe(experts, chosen, width, ffn, activation)


# a kernel takes 0.1 s to parse and is asked for by every layer
_linear = lru_cache(linear)
_linear_groups = lru_cache(linear_groups)
_quantise = lru_cache(quantise)
_route = lru_cache(route)
_combine = lru_cache(combine)
_embed_groups = lru_cache(embed_groups)
_rms_norm = lru_cache(rms_norm)
_activation = lru_cache(activation)
_append_kv = lru_cache(append_kv)
_append_hidden = lru_cache(append_hidden)
_attend = lru_cache(attend)
_moe = lru_cache(moe)
