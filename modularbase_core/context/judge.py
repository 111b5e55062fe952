"""What becomes of a page that leaves the hot window: kept exactly, in fewer bits, or as a mean.

Decides from who spoke, what is written, and whether it was written before. Moving pages is `tiers`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CRITICAL, IMPORTANT, REDUNDANT = "critical", "important", "redundant"

NGRAM: Final = 4
"""Tokens in a row by which a repetition is known; with those before it a page ends 16."""
FILTER_BITS: Final = 1 << 23
"""Of the filter of what was said before: 1 MiB, however long the conversation. Of a million tokens it holds a fifth of
its bits, so that a page of news is taken for a repetition once in 10^20."""

_ORDER: Final = ("", "assistant", "user", "system")
_FACTORS: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a page is worth. importance: 0..1; where room is short, less goes first."""

    kind: str
    importance: float


class Judge:
    """Judges the pages of one conversation, in their order.

    spell: the text of token ids. importance: see the hook `modularbase_importance`; what it gives 1 is critical.
    """

    def __init__(self, spell: Callable[[Sequence[int]], str], importance: Callable[[str, str, int], float]) -> None:
        self._spell, self._importance = spell, importance
        self._filter = np.zeros(FILTER_BITS // 8, np.uint8)
        self._last = np.zeros(0, np.int64)

    def judge(self, token_ids: Sequence[int], roles: Sequence[str], *, typed: bool) -> Judgement:
        """Judge the next page. roles: who speaks at each token, empty for the template. typed: not read from a file."""
        repeated = self.seen(token_ids)
        role = max(roles, key=_ORDER.index) or "assistant"
        importance = self._importance(role, self._spell(token_ids), 0)
        if importance >= 1.0 and (typed or role == "system"):
            return Judgement(CRITICAL, 1.0)
        return Judgement(REDUNDANT, 0.0) if repeated else Judgement(IMPORTANT, importance)

    def seen(self, token_ids: Sequence[int] | NDArray[np.int32]) -> bool:
        """Take the tokens that come next in; tell whether all of them were said before (a filter: Bloom, 1970)."""
        ids = np.concatenate([self._last, np.asarray(token_ids, np.int64)])
        self._last = ids[len(ids) - (NGRAM - 1) :] if len(ids) >= NGRAM else ids
        if len(ids) < NGRAM:
            return False
        grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM).astype(np.uint64)
        keys = (grams * _FACTORS).sum(1, dtype=np.uint64)
        keys ^= keys >> np.uint64(29)
        bits = np.concatenate([keys % np.uint64(FILTER_BITS), (keys >> np.uint64(32)) % np.uint64(FILTER_BITS)])
        places, masks = bits >> np.uint64(3), (1 << (bits & np.uint64(7))).astype(np.uint8)
        known = bool((self._filter[places] & masks).all())
        np.bitwise_or.at(self._filter, places, masks)
        return known
