"""The reference: a pack set's networks in torch, whole sequences without a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modularbase_core.graph.places import Windows
from modularbase_core.train.ship import load_shipped

Shares = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From weights [N] and the packs' outputs [T, N, E] to shares [T, N]."""


EXACT: dict[str, Any] = {"base_precision": "float32", "pack_precision": "float32"}
"""Settings under which an engine computes as torch does with the weights as they were trained."""


class Eager:
    """Logits of whole sequences under a base and packs, in some precision each. Valid up to the trained window."""

    def __init__(
        self, packs: dict[str, Path], base: str, base_precision: str = "float32", pack_precision: str = "float32"
    ) -> None:
        self._base = load_shipped(packs[base], base_precision)
        self._packs = {
            name: load_shipped(path, pack_precision)
            for name, path in packs.items()
            if hasattr(load_shipped(path), "experts")
        }

    @torch.no_grad()
    def logits(self, token_ids: list[int], pack: str) -> np.ndarray:
        """Return [T, V] for every position."""
        return self.blended(token_ids, {pack: 1.0}, lambda weights, outputs: torch.ones(outputs.shape[:2]))

    @torch.no_grad()
    def blended(self, token_ids: list[int], weights: dict[str, float], shares: Shares) -> np.ndarray:
        """Return [T, V] of several packs, each with its share of every token."""
        place = Windows(1)
        hidden = self._base.understand(torch.tensor(token_ids), place)
        outputs = torch.stack([self._packs[pack](hidden, place) for pack in weights], 1)
        share, rows = shares(torch.tensor(list(weights.values())), outputs), torch.arange(len(token_ids))
        logits = self._base.fuse((share[:, :, None] * outputs).sum(1), place, rows)
        for number, pack in enumerate(weights):
            if self._packs[pack].head is not None:
                logits = self._packs[pack].head(outputs[:, number], rows, logits, share[:, number])
        return logits.numpy()

    def greedy(self, token_ids: list[int], pack: str, count: int, end: int) -> list[int]:
        """Return at most `count` tokens, each the most likely one, up to `end`."""
        ids = list(token_ids)
        while len(ids) < len(token_ids) + count:
            token = int(self.logits(ids, pack)[-1].argmax())
            if token == end:
                break
            ids.append(token)
        return ids[len(token_ids) :]
