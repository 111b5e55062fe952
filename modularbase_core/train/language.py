"""The language-model stages: base with its trunk, and packs over a frozen base.

The base learns together with the trunk that becomes general chat, because head and fusion cannot be learnt
without a middle. A pack learns alone: base frozen, loss through fusion and head.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modularbase_core.errors import ConfigError
from modularbase_core.graph.blocks import Mixture
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.graph.routed import Routed, most_over_even
from modularbase_core.train.packing import document_mask
from modularbase_core.train.precision import autocast, dtype_of


class Whole(nn.Module):
    """A base and one pack as one language model; `frozen_base` leaves only the pack to learn.

    mixtures: of base and pack, in the order of the layers.
    """

    def __init__(self, base: Base, pack: Pack, begin: int, *, frozen_base: bool) -> None:
        super().__init__()
        self.base, self.pack, self.begin, self._frozen = base, pack, begin, frozen_base
        self.mixtures = [
            one
            for part in (base.understanding, pack.experts, base.fusion)
            for one in part.modules()
            if isinstance(one, Mixture)
        ]
        base.requires_grad_(not frozen_base)
        if pack.head is not None and len(pack.head.up.weight) != base.embedding.num_embeddings:
            raise ConfigError(
                f"the pack adds to the logits of {len(pack.head.up.weight)} tokens, but the base has "
                f"{base.embedding.num_embeddings}; set its vocabulary_size to that"
            )

    def learn_only(self, parts: Collection[str]) -> None:
        """Leave only some parts to learn: embedding, understanding, pack, fusion (with the last norm), head.

        What comes before the first of them is not kept for the way back.
        """
        base = self.base
        of_part: dict[str, tuple[nn.Module, ...]] = {
            "embedding": (base.embedding,),
            "understanding": (base.understanding,),
            "pack": (self.pack,),
            "fusion": (base.fusion, base.norm),
            "head": (base.embedding if base.head is None else base.head,),
        }
        self.requires_grad_(False)
        for part in parts:
            for module in of_part[part]:
                module.requires_grad_(True)

    def hidden_of(self, ids: Tensor, place: Windows) -> Tensor:
        """Return the adapter-boundary hidden states [W*N, E] of `ids` [W, N]."""
        return self.base.understand(ids.flatten(), place)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return what `head_weight` reads, [W*N, E], of `ids` [W, N], documents kept apart by `mask`.

        Where the pack adds to the head of low rank r, that is [W*N, E+r].
        """
        place = Windows(ids.shape[0], mask)
        if self._frozen:
            with torch.no_grad():
                hidden = self.hidden_of(ids, place)
        else:
            hidden = self.hidden_of(ids, place)
        rows = torch.arange(ids.numel(), device=ids.device)
        output = self.pack(hidden, place)
        features = self.base.features(output, place, rows)
        return features if self.pack.head is None else torch.cat([features, self.pack.head.features(output, rows)], 1)

    @property
    def routed(self) -> tuple[Routed, ...]:
        """What each mixture that learns did with the tokens of the last call."""
        learning = (one for one in self.mixtures if one.router.weight.requires_grad)
        return tuple(one.routed for one in learning if one.routed is not None)

    def head_weight(self) -> Tensor:
        """Return the matrix from features to logits: the head's [V, E], beside it what the pack adds, [V, E+r]."""
        weight = self.base.head_weight()
        return weight if self.pack.head is None else torch.cat([weight, self.pack.head.up.weight], 1)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a linear head, some rows at a time: the [T, V] logits never exist whole.

    The gradient is made in the forward pass, while a chunk's logits are in the cache (as in Liger Kernel,
    Hsu et al., 2024); here that is 3 times as fast as logits, softmax and loss one after another.
    """

    CHUNK_ROWS = 256

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, fixed: int) -> Tensor:
        # fixed: the first columns of `weight`, which get no gradient
        learns = weight.requires_grad
        low = weight.to(dtype)
        total = torch.zeros((), device=features.device)
        feature_grad = torch.empty_like(features)
        weight_grad = torch.zeros_like(weight) if learns else None
        for first in range(0, len(features), _HeadLoss.CHUNK_ROWS):
            part = slice(first, first + _HeadLoss.CHUNK_ROWS)
            x, target = features[part].to(dtype), targets[part]
            logits = functional.linear(x, low).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm[:, 0] - logits.gather(1, target[:, None])[:, 0]).sum()
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, target[:, None], grad.new_full((len(target), 1), -1.0))
            grad = grad.to(dtype)  # of a row's own loss: a share of the mean would be too small for float16
            feature_grad[part] = grad @ low
            if weight_grad is not None:
                weight_grad[:, fixed:] += grad.T @ x[:, fixed:]
        count = max(1, len(features))  # a batch where no row counts teaches nothing
        ctx.save_for_backward(feature_grad.div_(count), None if weight_grad is None else weight_grad.div_(count))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        feature_grad, weight_grad = ctx.saved_tensors
        return feature_grad * grads[0], None if weight_grad is None else weight_grad * grads[0], None, None, None


class Loss:
    """Mean next-token cross-entropy over the positions whose loss counts, in `precision` (see `precision.autocast`).

    balance, z_loss: weights of the losses (see `graph.routed`) of every mixture that learns, over all tokens.
    """

    def __init__(
        self, model: Whole, *, compiled: bool, precision: str = "bf16", balance: float = 0.01, z_loss: float = 0.0
    ) -> None:
        self._model, self._precision = model, precision
        self._balance, self._z_loss = balance, z_loss
        # how many rows an expert gets is known only when they are there; compiled around that, a step of mixtures took
        # as long as it did before (0.79 s, one core), after 70 s of compiling
        self._features = torch.compile(model, dynamic=False) if compiled and not model.mixtures else model

    def __call__(self, ids: Tensor, learn: Tensor) -> Tensor:
        """Return the scalar loss of a batch: ids [W, N+1], learn [W, N+1]."""
        inputs, counted = ids[:, :-1], learn[:, 1:].flatten()
        with warnings.catch_warnings(), autocast(self._precision, ids.device):
            # norms of a bfloat16 stream have float32 weights: meant, torch only misses its fused kernel
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            features = self._features(inputs, document_mask(inputs, self._model.begin))
        own = self._model.base.head_weight()
        fixed = 0 if own.requires_grad else own.shape[1]
        loss = self.head_loss(features.float()[counted], ids, learn, fixed)
        for one in self._model.routed:
            loss = loss + self._balance * one.balance
            if self._z_loss:
                loss = loss + self._z_loss * one.z_loss
        return loss

    def head_loss(self, features: Tensor, ids: Tensor, learn: Tensor, fixed: int) -> Tensor:
        """Return the mean loss of what follows from `features` [n, E], at the rows of the batch that count.

        fixed: the first columns of the head that get no gradient.
        """
        targets = ids[:, 1:].flatten()[learn[:, 1:].flatten()]
        loss: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            features, self._model.head_weight(), targets, dtype_of(self._precision), fixed
        )
        return loss

    def figures(self) -> dict[str, float]:
        """Return what a log may tell of the last batch: where there are mixtures, how evenly they were used.

        balance: the mean of their losses, 1 for even. busiest: see `graph.routed.most_over_even`.
        """
        routed = self._model.routed
        if not routed:
            return {}
        balance = sum(one.balance.item() for one in routed) / len(routed)
        return {"balance": balance, "busiest": most_over_even([one.counts for one in routed])}
