"""Where a mixture sent the tokens of a call, and the losses that keep its experts evenly used.

Training alone looks at it; which mixtures count, and with what weight, is the trainer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Routed(NamedTuple):
    """One mixture's routing of T tokens to k of its X experts each.

    counts: [X] int64, the tokens of each expert; they sum to T*k. balance: the scalar loss of Switch Transformer
    (Fedus et al., 2022) for k experts, as in Mixtral: X * sum of (share of tokens * mean probability), 1 where both are
    even. z_loss: of the router (ST-MoE, Zoph et al., 2022), the mean square of logsumexp(logits).
    """

    counts: Tensor
    balance: Tensor
    z_loss: Tensor


def routed(logits: Tensor, ids: Tensor) -> Routed:
    """Count and weigh `ids` [T, k], chosen by the router's `logits` [T, X] float32."""
    experts = logits.shape[-1]
    # every shape is known beforehand, which is what torch.compile asks for
    counts = (ids.flatten()[:, None] == torch.arange(experts, device=ids.device)).sum(0)
    share = counts / ids.numel()
    balance = experts * (share * logits.softmax(-1).mean(0)).sum()
    return Routed(counts, balance, logits.logsumexp(-1).square().mean())


def most_over_even(counts: Sequence[Tensor]) -> float:
    """Return how many times its even share the busiest expert has, the mean over mixtures; 1 is even, X the worst.

    counts: [X] of each mixture. Returns 1.0 where there is no mixture, or no token.
    """
    ratios = [float(one.max() * len(one) / one.sum()) for one in counts if one.any()]
    return sum(ratios) / len(ratios) if ratios else 1.0
