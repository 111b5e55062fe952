"""How long a stage learns and how fast at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOWEST: float = 0.02
"""The share of the peak rate at which a schedule ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps, peak rates and their course.

    kind: wsd (warm up, hold, decay linearly over `decay_share` of the steps; Hu et al., 2024) or cosine (warm up, then
    half a cosine; Loshchilov and Hutter, 2017). Both end at a fiftieth. matrix_rate, other_rate, weight_decay,
    clip_norm: see `optimisers.Optimisers`.
    """

    steps: int
    kind: str = "wsd"
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def factor(self, step: int) -> float:
        """Return the share of the peak learning rate at `step`."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return min(warm, LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * max(0.0, done))) / 2)
        return min(warm, max(LOWEST, (self.steps - step) / (self.decay_share * self.steps)))
