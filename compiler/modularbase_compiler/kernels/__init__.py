"""Kernels, one a file, and the set that each target offers; the families that graphs are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a graph must know of the kernels that it will get; every set of a target's has the same.

    Values of another dtype than `dtype` are left to Relax, and so are norms and activations of a width that is no
    multiple of `vector`. groups_layout: of quantised matrices, before their bits. zeros: whether quantised rows bring
    what the zero point of weights adds to a product, so that it can be taken off. workspace: whether attention and
    mixtures take theirs as further results (see `workspace`).
    """

    dtype: str
    linear_layout: str
    groups_layout: str
    zeros: bool
    vector: int = 1
    workspace: bool = False


def family_of(target: str, dtype: str) -> Family:
    """Return the family of the kernels of "cpu", which compute in float32 alone, or of "cuda"."""
    if target == "cpu":
        return Family(dtype="float32", linear_layout="n32k", groups_layout="n32q", zeros=True, vector=16)
    return Family(dtype=dtype, linear_layout="row", groups_layout="t32q", zeros=False, workspace=True)


class Kernels(Protocol):
    """What a target implements: each method returns a PrimFunc, or raises ArtefactError where there can be none.

    Arguments are plain values. Shapes are those of `graph.ops` and of the kernels' own docstrings.
    """

    def linear(self, n: int, k: int, *, bias: bool, residual: bool, stored: str) -> Any:
        """Make y = x @ W^T (+ bias) (+ residual), W in the family's layout and the dtype `stored`."""

    def linear_groups(self, n: int, k: int, bits: int, *, bias: bool, residual: bool) -> Any:
        """Make y = x @ W^T (+ bias) (+ residual) of rows that `quantise` made, W in the layout of `bits`."""

    def expert_groups(self, n: int, k: int, bits: int, *, experts: int, shared: int) -> Any:
        """Make such products for the experts of a mixture, each of its own rows."""

    def route(self, experts: int, chosen: int) -> Any:
        """Make the choice of experts: from logits to pairs by expert, and their gates."""

    def combine(self, chosen: int, width: int) -> Any:
        """Make the sum of what a row's experts made, by its gates."""

    def quantise(self, width: int, bits: int, *, epsilon: float | None = None, form: str = "") -> Any:
        """Make rows ready for a quantised product: normalised before where `epsilon` is given, activated by `form`."""

    def embed_groups(self, rows: int, width: int, bits: int) -> Any:
        """Make the look-up of rows in a quantised matrix."""

    def rms_norm(self, width: int, epsilon: float) -> Any:
        """Make RMSNorm."""

    def activation(self, width: int, form: str) -> Any:
        """Make `graph.ops.activate` of a [T, 2F] or [T, F] projection; form: see there."""

    def append_kv(self, layers: int, heads: int, kv_heads: int, size: int) -> Any:
        """Make the op `append_kv`, in place."""

    def append_hidden(self, width: int) -> Any:
        """Make the op `append_hidden`, in place."""

    def attend(self, layers: int, heads: int, kv_heads: int, size: int, positions: int) -> Any:
        """Make the op `attend`."""

    def moe(self, experts: int, chosen: int, width: int, ffn: int, activation: str) -> Any:
        """Make the op `moe`."""
