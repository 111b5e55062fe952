"""How far a student's next words are from its teacher's, some rows at a time, beside the cross-entropy.

The teacher's likeliest tokens are compared one by one and all others as one class, so that neither's [T, V] logits
exist whole, and the divergence is never more than that of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.precision import dtype_of

SMALLEST = 1e-6
"""Of the share of all other tokens: what is divided by is never less."""


@dataclass(frozen=True, slots=True)
class Top:
    """A teacher's likeliest tokens at some rows. shares: [n, k] float32, of all; tokens: [n, k] int64."""

    shares: Tensor
    tokens: Tensor


TopOf = Callable[[Tensor, Tensor], Top]
"""From ids [W, N] and the rows [n] of them that count, to the teacher's likeliest tokens there."""


class SoftLoss(Loss):
    """Mean over the positions whose loss counts of weight * temperature² * KL + (1 - weight) * cross-entropy.

    top_of: asks the teacher, whose shares are softened by the same `temperature` (Hinton et al., 2015).
    """

    def __init__(
        self,
        model: Whole,
        top_of: TopOf,
        *,
        weight: float,
        temperature: float,
        compiled: bool,
        precision: str = "bf16",
        balance: float = 0.01,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(model, compiled=compiled, precision=precision, balance=balance, z_loss=z_loss)
        self._top_of, self._weight, self._temperature = top_of, weight, temperature
        self._divergence = torch.zeros(())

    def head_loss(self, features: Tensor, ids: Tensor, learn: Tensor, fixed: int) -> Tensor:
        """Compare what follows from `features` [n, E] with the teacher's, at the rows of `ids` that count."""
        rows = torch.nonzero(learn[:, 1:].flatten()).flatten()
        with torch.no_grad():
            top = self._top_of(ids[:, :-1], rows)
        loss: Tensor
        loss, self._divergence = _SoftHeadLoss.apply(  # type: ignore[no-untyped-call]
            features,
            self._model.head_weight(),
            ids[:, 1:].flatten()[rows],
            top,
            (self._weight, self._temperature),
            dtype_of(self._precision),
            fixed,
        )
        return loss

    def figures(self) -> dict[str, float]:
        """Return what `Loss.figures` does, and the mean divergence from the teacher in nats."""
        return {**super().figures(), "divergence": self._divergence.item()}


class _SoftHeadLoss(torch.autograd.Function):
    """The loss of a linear head with its gradient, made chunk by chunk, as `language._HeadLoss` does."""

    CHUNK_ROWS = 256

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        top: Top,
        mixed: tuple[float, float],
        dtype: torch.dtype,
        fixed: int,
    ) -> tuple[Tensor, Tensor]:
        share, temperature = mixed
        low = weight.to(dtype)
        total, divergence = (torch.zeros((), device=features.device) for _ in range(2))
        feature_grad = torch.empty_like(features)
        weight_grad = torch.zeros_like(weight) if weight.requires_grad else None
        for first in range(0, len(features), _SoftHeadLoss.CHUNK_ROWS):
            part = slice(first, first + _SoftHeadLoss.CHUNK_ROWS)
            x, target = features[part].to(dtype), targets[part]
            logits = functional.linear(x, low).float()
            grad, apart = _soft(logits / temperature, Top(top.shares[part], top.tokens[part]))
            divergence += apart
            total += share * temperature**2 * apart
            grad *= share * temperature
            if share < 1:
                norm = logits.logsumexp(1, keepdim=True)
                total += (1 - share) * (norm[:, 0] - logits.gather(1, target[:, None])[:, 0]).sum()
                hard = logits.sub_(norm).exp_()
                hard.scatter_add_(1, target[:, None], hard.new_full((len(target), 1), -1.0))
                grad.add_(hard, alpha=1 - share)
            grad = grad.to(dtype)
            feature_grad[part] = grad @ low
            if weight_grad is not None:
                weight_grad[:, fixed:] += grad.T @ x[:, fixed:]
        count = max(1, len(features))  # a batch where no row counts teaches nothing
        ctx.save_for_backward(feature_grad.div_(count), None if weight_grad is None else weight_grad.div_(count))
        ctx.mark_non_differentiable(divergence)
        return total / count, divergence / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        feature_grad, weight_grad = ctx.saved_tensors
        both = (feature_grad * grads[0], None if weight_grad is None else weight_grad * grads[0])
        return (*both, None, None, None, None, None)


def _soft(logits: Tensor, top: Top) -> tuple[Tensor, Tensor]:
    """Return the gradient of the summed divergence by softened `logits` [n, V], and that sum.

    With p the teacher's shares and q the student's, of k tokens and of the rest r: the sum of p ln(p / q) over k + 1
    classes, whose gradient is q - p at the k and q (1 - p_r / q_r) elsewhere.
    """
    logs = logits.log_softmax(1)
    q = logs.exp()
    chosen = logs.gather(1, top.tokens)
    rest = (1 - top.shares.sum(1, keepdim=True)).clamp(min=0)
    others = (1 - chosen.exp().sum(1, keepdim=True)).clamp(min=SMALLEST)
    apart = torch.special.xlogy(top.shares, top.shares) - top.shares * chosen
    apart_rest = torch.special.xlogy(rest, rest) - rest * others.log()
    grad = q * (1 - rest / others)
    grad.scatter_(1, top.tokens, chosen.exp() - top.shares)
    return grad, apart.sum() + apart_rest.sum()


def top_of_logits(logits: Tensor, count: int, temperature: float) -> Top:
    """Return the `count` likeliest tokens of `logits` [n, V], with their shares of all when softened."""
    softened = logits.float() / temperature
    values, tokens = softened.topk(min(count, softened.shape[1]), 1)
    return Top((values - softened.logsumexp(1, keepdim=True)).exp(), tokens)
