"""What becomes of a page that leaves the hot window: kept exactly, in fewer bits, or as a mean.

Decides from who spoke, what is written, and whether it was written before. Moving pages is `tiers`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.sdk.architecture import PAGE_TOKENS

CRITICAL, IMPORTANT, REDUNDANT = "critical", "important", "redundant"

READ: Final = 0.25
"""How important text is that was read from a file, which is there to be read again."""
NGRAM: Final = 4
"""Tokens in a row by which a repetition is known; a page ends 16 of them."""
FILTER_BITS: Final = 1 << 23
"""Of the filter of what was said before: 1 MiB, however long the conversation. Of a million tokens it holds a fifth of
its bits, so that a page of news is taken for a repetition once in 10^20."""

WEIGHT: Final = ("", "assistant", "user", "system")
"""Who counts, from the least to the most, where several speak on a page."""
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

    def judge(self, pages: NDArray[np.int32], roles: Sequence[str], *, typed: Sequence[bool]) -> list[Judgement]:
        """Judge the next pages [N, 16]. roles: who speaks most weightily in each. typed: not read from a file."""
        told = zip(pages.tolist(), roles, typed, self.seen(pages), strict=True)
        return [self._judged(ids, role, typed, repeated) for ids, role, typed, repeated in told]

    def _judged(self, token_ids: Sequence[int], role: str, typed: bool, repeated: bool) -> Judgement:
        if not typed and role != "system":  # a million tokens have 62,500 pages to spell and ask about
            return Judgement(REDUNDANT, 0.0) if repeated else Judgement(IMPORTANT, READ)
        importance = self._importance(role or "assistant", self._spell(token_ids), 0)
        if importance >= 1.0:
            return Judgement(CRITICAL, 1.0)
        return Judgement(REDUNDANT, 0.0) if repeated else Judgement(IMPORTANT, importance)

    def seen(self, pages: NDArray[np.int32]) -> list[bool]:
        """Take the next pages [N, 16] in; tell of each whether all of it was said before (a filter: Bloom, 1970).

        Not of what is said twice among these pages themselves.
        """
        ids = np.concatenate([self._last, pages.reshape(-1).astype(np.int64)])
        fresh, self._last = len(self._last), ids[len(ids) - (NGRAM - 1) :]
        grams = np.lib.stride_tricks.sliding_window_view(ids, NGRAM).astype(np.uint64)
        keys = (grams * _FACTORS).sum(1, dtype=np.uint64)
        keys ^= keys >> np.uint64(29)
        bits = np.stack([keys % np.uint64(FILTER_BITS), (keys >> np.uint64(32)) % np.uint64(FILTER_BITS)])
        places, masks = bits >> np.uint64(3), (1 << (bits & np.uint64(7))).astype(np.uint8)
        known = (self._filter[places] & masks).astype(np.bool_).all(0)
        np.bitwise_or.at(self._filter, places, masks)
        first = np.zeros(PAGE_TOKENS * len(pages), np.bool_)
        first[len(first) - len(known) :] = known
        if not fresh:  # the first n-grams of all have nothing before them to repeat
            first[: NGRAM - 1] = True
        return [bool(page.all()) for page in first.reshape(len(pages), PAGE_TOKENS)]
