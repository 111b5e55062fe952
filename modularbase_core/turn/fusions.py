"""How several packs' outputs are blended: a share for each pack at each token, from the route and their agreement.

A token is weighed by itself and sums are taken pack by pack, so its bits do not depend on who shares a call. What
goes over whole outputs is the device's (`graph.programs`: compare, mix).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.sdk.fusion import Fusion

Floats = NDArray[np.float32]

AUXILIARY_SHARE: Final = 0.3
"""What the packs beside the primary have together, at most."""


class Shares:
    """The shares that a fusion gives, less those of packs that contradict the one that leads.

    contradiction: a pack whose output's cosine with the heaviest pack's is below it gives its share to that one, at
    that token; -1 switches it off. Below the default, 0.3, the shipped packs agree on the next token in 16 % of cases
    at most, above 0.6 in 54 to 60 % (tests/bench/fusion.py).
    """

    def __init__(self, fusion: Fusion, contradiction: float) -> None:
        self._fusion, self._contradiction = fusion, contradiction
        self._faults: list[str] = []

    @property
    def compares(self) -> bool:
        """Whether the packs' inner products are needed."""
        return self._fusion.compares or self._contradiction > -1

    @property
    def described(self) -> tuple[str, float]:
        """All that shares depend on beside weights and outputs."""
        return self._fusion.name, self._contradiction

    def take_faults(self) -> list[str]:
        """Return what went wrong so far, a sentence each, and forget it."""
        faults, self._faults = self._faults, []
        return faults

    def __call__(self, weights: Floats, gram: Floats | None, rows: int) -> Floats:
        """Return [rows, N]; see `sdk.fusion.Fusion.weigh`. A fusion that raises is replaced by the mean for good."""
        shares = np.empty((rows, len(weights)), np.float32)
        try:
            shares[:] = _checked(self._fusion.weigh(weights, gram if self._fusion.compares else None), rows, weights)
        except (Exception, SystemExit) as error:  # what a plugin raises can be anything
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self._faults.append(f"fusion {self._fusion.name!r} failed ({told}); packs are blended by their mean")
            self._fusion = MEAN
            shares[:] = weights
        if self._contradiction > -1:
            assert gram is not None
            contradicts = cosines(gram)[:, 0] < self._contradiction
            for pack in range(1, len(weights)):
                shares[:, 0] += np.where(contradicts[:, pack], shares[:, pack], 0)
                shares[:, pack] = np.where(contradicts[:, pack], 0, shares[:, pack])
        return shares


def cosines(gram: Floats) -> Floats:
    """Return the cosines [T, N, N] of packs' outputs; 0 where one of them is zero or not finite."""
    lengths = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    with np.errstate(all="ignore"):
        ratio = gram / (lengths[:, :, None] * lengths[:, None, :])
    clipped: Floats = np.where(np.isfinite(ratio), np.maximum(np.minimum(ratio, 1), -1), np.float32(0))
    return clipped


def mean(weights: Floats, gram: Floats | None) -> Floats:
    """Give every pack the share that it was routed with."""
    return weights


def attention(weights: Floats, gram: Floats | None) -> Floats:
    """Let each pack's output attend to all packs' outputs, without parameters: packs that agree gain, a loner loses.

    a[p, q] = softmax over q of (g cos(p, q) + log w[q]), share[q] = sum over p of w[p] a[p, q]. Cosines and the scale
    g = log2(N^2 - N) are those of query-key normalisation (Henry et al., 2020, arXiv 2010.04245), as outputs are of
    any length; with the prior w, packs that all agree keep the shares that they were routed with.
    """
    assert gram is not None
    count = len(weights)
    # a cosine is at most 1, so exp needs no running maximum
    attended = weights * np.exp(np.float32(np.log2(count * count - count)) * cosines(gram))
    total = attended[:, :, 0]
    for pack in range(1, count):
        total = total + attended[:, :, pack]
    share: Floats = weights[0] * (attended[:, 0] / total[:, 0, None])
    for pack in range(1, count):
        share = share + weights[pack] * (attended[:, pack] / total[:, pack, None])
    return share


def primary(weights: Floats, gram: Floats | None) -> Floats:
    """Let the heaviest pack lead; the others have `AUXILIARY_SHARE` at most, each as far as it agrees (cosine)."""
    assert gram is not None
    rest = float(weights[1:].sum())
    scale = np.float32(min(AUXILIARY_SHARE, rest) / rest) if rest else np.float32(0)
    share = scale * weights * np.maximum(cosines(gram)[:, 0], 0)
    share[:, 0] = 1
    for pack in range(1, len(weights)):
        share[:, 0] -= share[:, pack]
    return share


MEAN: Final = Fusion("mean", mean)
BUILTIN: Final = (MEAN, Fusion("attention", attention, compares=True), Fusion("primary", primary, compares=True))


# Any: a plugin's answer
def _checked(answer: Any, rows: int, weights: Floats) -> Floats:
    shares = np.asarray(answer, np.float32)
    if shares.shape not in ((rows, len(weights)), weights.shape):
        raise ValueError(f"its shares have the shape {shares.shape} where {(rows, len(weights))} is wanted")
    if not np.isfinite(shares).all():
        raise ValueError("its shares are not finite")
    return shares
