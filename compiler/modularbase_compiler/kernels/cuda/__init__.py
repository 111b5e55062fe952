"""The GPU's kernels: float16 with float32 sums, bound to threads by hand.

Float weights lie by rows, quantised ones in the order in which tensor cores take them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from modularbase_compiler.inlines import hasten_inlines
from modularbase_compiler.kernels.cuda.attend import attend
from modularbase_compiler.kernels.cuda.embed_groups import embed_groups
from modularbase_compiler.kernels.cuda.linear import linear
from modularbase_compiler.kernels.cuda.linear_groups import linear_groups
from modularbase_compiler.kernels.cuda.moe import moe
from modularbase_compiler.kernels.cuda.quantise import quantise
from modularbase_compiler.kernels.cuda.route import combine, route
from modularbase_compiler.kernels.cuda.rows import activation, append_hidden, append_kv, rms_norm
from modularbase_core.errors import ArtefactError

_SHARED_BYTES = 48 << 10  # what every architecture gives a block without asking


class CudaKernels:
    """The kernel set of `cuda`, for networks of `dtype`."""

    def __init__(self, dtype: str) -> None:
        hasten_inlines()
        self._dtype = dtype

    def linear(self, n: int, k: int, *, bias: bool, residual: bool, stored: str) -> Any:
        """Make the kernel of tensor cores."""
        return _linear(n, k, bias=bias, residual=residual)

    def linear_groups(self, n: int, k: int, bits: int, *, bias: bool, residual: bool) -> Any:
        """Make the kernels for tensor cores."""
        return _linear_groups(n, k, bits, bias=bias, residual=residual, dtype=self._dtype)

    def expert_groups(self, n: int, k: int, bits: int, *, experts: int, shared: int) -> Any:
        """Make the kernels for tensor cores."""
        return _linear_groups(n, k, bits, experts=experts, shared=shared, dtype=self._dtype)

    def route(self, experts: int, chosen: int) -> Any:
        """Make the kernel."""
        return _route(experts, chosen)

    def combine(self, chosen: int, width: int) -> Any:
        """Make the kernel."""
        return _combine(chosen, width, self._dtype)

    def quantise(self, width: int, bits: int, *, epsilon: float | None = None, form: str = "") -> Any:
        """Make the kernel; rows are the same whatever the bits of the weights."""
        return _quantise(width, epsilon=epsilon, form=form, dtype=self._dtype)

    def embed_groups(self, rows: int, width: int, bits: int) -> Any:
        """Make the kernel."""
        return _embed_groups(rows, width, bits, self._dtype)

    def rms_norm(self, width: int, epsilon: float) -> Any:
        """Make the kernel."""
        return _rms_norm(width, epsilon, self._dtype)

    def activation(self, width: int, form: str) -> Any:
        """Make the kernel."""
        return _activation(width, form, self._dtype)

    def append_kv(self, layers: int, heads: int, kv_heads: int, size: int) -> Any:
        """Make the kernel."""
        return _append_kv(layers, heads, kv_heads, size, self._dtype)

    def append_hidden(self, width: int) -> Any:
        """Make the kernel."""
        return _append_hidden(width, self._dtype)

    def attend(self, layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
        """Make the kernel; raises ArtefactError where a head's rotated keys exceed shared memory."""
        _check_shared("a head", 32 * size, "lower head_size")
        return _attend(layers, heads, kv_heads, size, positions)

    def moe(self, experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
        """Make the kernel."""
        return _moe(experts, chosen, width, ffn, activation)


def _check_shared(what: str, floats: int, remedy: str) -> None:
    if floats * 4 > _SHARED_BYTES:
        raise ArtefactError(
            f"{what} of this size needs {floats * 4} bytes of a GPU's shared memory, "
            f"a block has {_SHARED_BYTES}; {remedy}"
        )


# a kernel takes 0.1 s to parse and is asked for by every layer
_linear = lru_cache(linear)
_linear_groups = lru_cache(linear_groups)
_route = lru_cache(route)
_combine = lru_cache(combine)
_quantise = lru_cache(quantise)
_embed_groups = lru_cache(embed_groups)
_rms_norm = lru_cache(rms_norm)
_activation = lru_cache(activation)
_append_kv = lru_cache(append_kv)
_append_hidden = lru_cache(append_hidden)
_attend = lru_cache(attend)
_moe = lru_cache(moe)
