"""What a kernel writes beside its result, as further results of its call: so it is planned with a program's memory."""

from __future__ import annotations

from typing import Final

FEW_ROWS: Final = 32
"""Rows of a call up to which a GPU's kernels cut the keys instead of the rows."""

BLOCK_TOKENS: Final = 256
"""Keys of a partial of attention."""


def partial_shape(heads: int, size: int, positions: int) -> tuple[int, int]:
    """Return the shape of attention's partials, float32: of few rows, by row, head and block of keys.

    One is D values, the power of two that its weights are relative to, their sum, and two that align the next.
    """
    return FEW_ROWS * heads * -(-positions // BLOCK_TOKENS), size + 4
