"""The network that speed.py measures, of Qwen2-0.5B's shape, and what its calls cannot do without."""

from __future__ import annotations

import numpy as np

SHAPE = {"width": 896, "layers": 24, "ffn": 4864, "vocabulary": 151936, "heads": 14, "kv_heads": 2, "head": 64}
WINDOW = 2048
WARM = 8
"""Steps before those that are timed."""
BATCH_PROMPT = 32
"""Tokens of each of several sequences."""


def random_ids(count: int) -> list[int]:
    """Draw tokens, the same ones each time."""
    found: list[int] = np.random.default_rng(0).integers(0, SHAPE["vocabulary"], count).tolist()
    return found


def layer_weights() -> int:
    """Count the weights of a layer's matrices."""
    width, ffn = SHAPE["width"], SHAPE["ffn"]
    return width * (width + 2 * SHAPE["kv_heads"] * SHAPE["head"]) + width * width + 3 * width * ffn


def operations(rows: int, seen: float, logits: int) -> float:
    """Count operations, two for a product and its addition, of `rows` new tokens which see `seen` tokens on average."""
    matrices = 2.0 * rows * SHAPE["layers"] * layer_weights()
    attention = 4.0 * rows * seen * SHAPE["layers"] * SHAPE["heads"] * SHAPE["head"]
    return matrices + attention + 2.0 * logits * SHAPE["width"] * SHAPE["vocabulary"]


def context_bytes(tokens: float, item_bytes: int, layers: int = SHAPE["layers"]) -> float:
    """Return the bytes of keys and values of so many tokens."""
    return 2.0 * layers * SHAPE["kv_heads"] * SHAPE["head"] * tokens * item_bytes
