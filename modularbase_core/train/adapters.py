"""A pack's adapters turned in closed form, by least squares over what two bases say of the same text."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from modularbase_core.graph.networks import Pack

RIDGE: Final = 1e-4
"""Pull towards no change, as a share of the mean square of the hidden states."""


class Fit:
    """The linear map that brings rows nearest to others, added up batch by batch (ridge regression).

    Directions that the rows never take stay as they are.
    """

    def __init__(self, size: int) -> None:
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._cross = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """Take in rows [T, E] and what each is to become [T, E]."""
        x, y = rows.double().cpu(), wanted.double().cpu()
        self._gram += x.T @ x
        self._cross += x.T @ y

    def solve(self) -> Tensor:
        """Return the map [E, E] float32: a row x becomes map @ x."""
        pull = RIDGE * self._gram.diagonal().mean() * torch.eye(len(self._gram), dtype=torch.float64)
        turn: Tensor = torch.linalg.solve(self._gram + pull, self._cross + pull)
        return turn.T.float()


def turn_input(pack: Pack, turn: Tensor) -> None:
    """Let the pack take hidden states that `turn` [E, E] makes the old ones of."""
    weight = pack.input_adapter.weight
    weight.copy_(weight @ turn.to(weight))


def turn_output(pack: Pack, turn: Tensor) -> None:
    """Let the pack give what `turn` [E, E] makes of its old output."""
    weight = pack.output_adapter.weight
    weight.copy_(turn.to(weight) @ weight)
