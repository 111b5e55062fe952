"""What a kernel writes beside its result, as further results of its call: so it is planned with a program's memory."""

from __future__ import annotations

from typing import Any, Final

FEW_ROWS: Final = 32
"""Rows of a call up to which a GPU's kernels cut the keys instead of the rows."""

BLOCK_TOKENS: Final = 256
"""Keys of a partial of attention."""


def partial_shape(heads: int, size: int, positions: int) -> tuple[int, int]:
    """Return the shape of attention's partials, float32: of few rows, by row, head and block of keys.

    One is D values, the power of two that its weights are relative to, their sum, and two that align the next.
    """
    return FEW_ROWS * heads * -(-positions // BLOCK_TOKENS), size + 4


def mixture_shapes(rows: Any, experts: int, chosen: int, width: int, ffn: int) -> list[tuple[list[Any], str]]:
    """Return the shapes and dtypes of a mixture's workspace, by pair of a row and a choice.

    Experts chosen, pairs by expert, where each expert's begin, gates, hidden values, and what experts made.
    """
    pairs = rows * chosen
    integers = [([pairs], "int32"), ([pairs], "int32"), ([experts + 1], "int32")]
    return [*integers, ([pairs], "float32"), ([pairs, ffn], "float16"), ([pairs, width], "float32")]
