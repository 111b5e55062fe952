"""The keys of cold pages that a search looks at closely, as many as fit some memory: the last ones looked at.

Bounds alone find pages that get 73 to 79 % of the attention that the best ones would; the same pages chosen by their
keys from the 48 that bounds put first, 95 % (tests/bench/tiers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.sdk.architecture import PAGE_TOKENS

HELD_BYTES: Final = 4 << 20

# products so small that OpenBLAS keeps to one thread: two of its own beside the kernels' take 100 ms instead of one
_AT_ONCE: Final = 4


class ColdKeys:
    """Un-rotated understanding keys of pages, float16, each [L, K, D, 16]; the least recently used go first."""

    def __init__(self, layers: int, kv_heads: int, head_size: int) -> None:
        self._shape = (layers, kv_heads, head_size, PAGE_TOKENS)
        self._most = max(64, HELD_BYTES // (2 * int(np.prod(self._shape))))
        self._keys: dict[int, NDArray[np.float16]] = {}

    def hold(self, pages: Sequence[int], keys: NDArray[np.floating]) -> None:
        """Hold the keys [N, L, K, D, 16] of pages."""
        for page, one in zip(pages, keys, strict=True):
            self._keys.pop(page, None)
            self._keys[page] = one.astype(np.float16)
        for page in list(self._keys)[: max(0, len(self._keys) - self._most)]:
            del self._keys[page]

    def drop(self, page: int) -> None:
        """Forget a page, held or not."""
        self._keys.pop(page, None)

    def lacking(self, pages: Sequence[int]) -> list[int]:
        """Return which of these pages are not held; the others count as used."""
        for page in pages:
            if page in self._keys:
                self._keys[page] = self._keys.pop(page)
        return [page for page in pages if page not in self._keys]

    def best(self, queries: NDArray[np.float32], pages: Sequence[int], count: int) -> list[int]:
        """Return the `count` of these pages, held ones, that `queries` [R, L, H, D] attend to most, best first."""
        pages = sorted(page for page in pages if page in self._keys)
        if not pages:
            return []
        layers, kv_heads, size, _ = self._shape
        grouped = queries.reshape(len(queries), layers, kv_heads, -1, size).transpose(1, 2, 0, 3, 4)
        asked = grouped.reshape(layers, kv_heads, -1, size)
        parts = [pages[first : first + _AT_ONCE] for first in range(0, len(pages), _AT_ONCE)]
        keys = (np.concatenate([self._keys[page] for page in part], -1).astype(np.float32) for part in parts)
        score = np.concatenate([asked @ part for part in keys], -1)  # [L, K, rows, 16 * pages]
        score = np.exp((score - score.max(-1, keepdims=True)) * np.float32(size**-0.5))
        share = (score / score.sum(-1, keepdims=True)).sum((0, 1, 2)).reshape(len(pages), PAGE_TOKENS).sum(1)
        return [pages[place] for place in np.argsort(-share, kind="stable")[:count]]
