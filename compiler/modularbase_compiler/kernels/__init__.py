"""Kernels, one a file, and the set that each target offers to the converters."""

from __future__ import annotations

from typing import Any, Protocol


class Kernels(Protocol):
    """What a target implements: each method returns a PrimFunc, or None where Relax's own lowering is to serve.

    Shapes of arguments are those of `graph.ops` and of the kernels' own docstrings.
    Values of another dtype than `dtype` are left to Relax.
    """

    dtype: str
    linear_layout: str

    def linear(self, n: int, k: int, *, bias: bool, residual: bool) -> Any | None:
        """Make y = x @ W^T (+ bias) (+ residual), W in `linear_layout`."""

    def rms_norm(self, width: int, epsilon: float) -> Any | None:
        """Make RMSNorm."""

    def activation(self, width: int, form: str) -> Any | None:
        """Make `graph.ops.activate` of a [T, 2F] or [T, F] projection; form: see there."""

    def append_kv(self, layers: int, heads: int, kv_heads: int, size: int) -> Any:
        """Make the op `append_kv`, in place."""

    def append_hidden(self, width: int) -> Any:
        """Make the op `append_hidden`, in place."""

    def attend(self, layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
        """Make the op `attend`."""

    def moe(self, experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
        """Make the op `moe`."""
