"""Synthetic recall documents: text that repeats itself after a while.

A small model learns to copy from its context (induction heads, Olsson et al., 2022) far sooner with a few
per cent of these in the mix than from prose alone, and reading a prompt is mostly copying.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularbase_core.train.packing import Tokens


def recall_documents(
    tokens: Tokens, wanted: int, begin: int, end: int, *, control: int, seed: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield documents of `wanted` tokens in all, made of snippets of `tokens`.

    Half repeat a snippet after another one (A B A); half list snippets and then repeat them in another order.
    The loss counts on the repeated parts alone. Ids under `control` are control tokens and are left out.
    """
    random = np.random.default_rng(seed)
    plain = tokens.ids[tokens.ids >= control]
    made = 0
    while made < wanted:
        if random.random() < 0.5:
            size, gap = int(random.integers(12, 97)), int(random.integers(0, 200))
            parts = [_snippet(plain, size, random), _snippet(plain, gap, random)]
            if random.random() < 0.5:
                random.shuffle(parts[0])  # no grammar to lean on: only the copy helps
            again = [parts[0]]
        else:
            parts = [_snippet(plain, int(random.integers(6, 25)), random) for _ in range(int(random.integers(3, 8)))]
            again = [parts[i] for i in random.permutation(len(parts))]
        shown, repeated = np.concatenate(parts).tolist(), np.concatenate(again).tolist()
        ids = [begin, *shown, *repeated, end]
        made += len(ids)
        yield ids, [False] * (len(shown) + 1) + [True] * len(repeated) + [False]


def _snippet(plain: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    first = int(random.integers(0, len(plain) - size))
    return plain[first : first + size].astype(np.int64)
