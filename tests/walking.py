"""What the tests of the loop share: a tiny network, its loss and its batches. Imported by child processes too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from modularbase_core.train.loop import Batch


def network(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8))


def batches(step: int) -> Iterator[Batch]:
    """Yield ids [4, 9, 8], learn [4, 9], of which other numbers count in each window."""
    while True:
        random = torch.Generator().manual_seed(step)
        ids = torch.randn(4, 9, 8, generator=random)
        yield ids, torch.rand(4, 9, generator=random) < torch.tensor([0.9, 0.5, 0.2, 0.8])[:, None]
        step += 1


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(ids: Tensor, learn: Tensor) -> Tensor:
        counted = learn[:, 1:]
        away = (model(ids[:, :-1]) - ids[:, :-1]).square().mean(-1)
        return (away * counted).sum() / counted.sum().clamp(min=1)

    return loss


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
