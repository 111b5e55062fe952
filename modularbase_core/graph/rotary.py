"""The table of RoPE's angles, in numpy: a compiled graph is completed with it where torch is not installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modularbase_core.sdk.architecture import PAGE_TOKENS


def rotary_table(positions: int, head_size: int, theta: float) -> NDArray[np.float32]:
    """Tabulate RoPE (Su et al., 2021; half-split as in Llama): [positions/16, D, 16] float32.

    Rows 0..D/2 of a page hold cosines, rows D/2..D sines; the last axis is the token in its page.
    """
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequency
    table = np.concatenate([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    return np.ascontiguousarray(table.reshape(-1, PAGE_TOKENS, head_size).transpose(0, 2, 1))
