"""Which cold pages of one conversation hold the words of a question.

Words are tokens, weighed as BM25 does (Robertson and Zaragoza, 2009, The Probabilistic Relevance Framework); all
pages are equally long, so of its two other terms nothing is left. The pages' tokens are scanned, not listed by word:
half the memory, nothing to mend when a page goes. What is a question, and where pages lie, is left to others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modularbase_core.sdk.architecture import PAGE_TOKENS

# A pair that says less than half of what the best one says has mostly the question's commoner words; bringing it
# back would take a place from a page that attention asks for.
WORTH: Final = 0.5
# A token in more than a tenth of the pages tells none of them apart, however many such tokens a question has. In a
# short conversation a tenth is nothing: up to FEW pages only its inverse frequency weighs a token.
COMMON: Final = 0.1
FEW: Final = 8
# Weights are rounded to 2^-20: their sums are then exact in float64, in any order, and equals are equal.
_STEPS: Final = 2.0**20

Numbers = NDArray[np.int64]
Weights = NDArray[np.float64]


class WordIndex:
    """The tokens of the pages held, by absolute page number, in arrays that double.

    A token is kept plus one, so that 0 is no token: what a missing page holds.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary = vocabulary_size
        self._first = 0  # page number of row 0
        self._held = np.zeros(0, np.bool_)
        self._tokens = np.zeros((0, PAGE_TOKENS), np.uint16 if vocabulary_size < 1 << 16 else np.uint32)
        self._frequency = np.zeros(vocabulary_size + 1, np.int32)  # pages that hold each token, kept as above

    def __len__(self) -> int:
        """Count the pages held."""
        return int(np.count_nonzero(self._held))

    def __contains__(self, page: int) -> bool:
        """Tell whether a page is held."""
        place = page - self._first
        return 0 <= place < len(self._held) and bool(self._held[place])

    @property
    def bytes_per_token(self) -> float:
        """Bytes of memory for each token held, once the arrays are full; before that up to twice as many.

        Besides, 4 for each token of the vocabulary, however long the conversation.
        """
        return self._tokens.itemsize + 1 / PAGE_TOKENS

    def add(self, page: int, tokens: ArrayLike) -> None:
        """Hold a page of 16 tokens; see `add_many`."""
        self.add_many([page], np.asarray(tokens)[None])

    def add_many(self, pages: Sequence[int], tokens: ArrayLike) -> None:
        """Hold pages, none of them held yet; in any order, in one call or in many.

        tokens: [N, 16] int32, -1 where there is none.
        """
        if not len(pages):
            return
        numbers, rows = np.asarray(pages, np.int64), np.asarray(tokens)
        assert rows.shape == (len(numbers), PAGE_TOKENS), f"tokens of {rows.shape}"
        assert rows.max() < self._vocabulary, f"token {rows.max()} in a vocabulary of {self._vocabulary}"
        self._cover(int(numbers.min()), int(numbers.max()))
        places = numbers - self._first
        assert not self._held[places].any(), "a page is added twice"
        assert len(set(pages)) == len(pages), "a page is added twice"
        self._held[places] = True
        self._tokens[places] = np.maximum(rows, -1) + 1
        np.add.at(self._frequency, _distinct(self._tokens[places]), 1)

    def remove(self, page: int) -> None:
        """Forget a page."""
        assert page in self, f"page {page} is not held"
        place = page - self._first
        self._held[place] = False
        np.subtract.at(self._frequency, _distinct(self._tokens[place][None]), 1)
        self._tokens[place] = 0

    def search(
        self,
        tokens: Sequence[int],
        *,
        before: int,
        count: int,
        without: Collection[int] = (),
        worth: float = WORTH,
    ) -> Numbers:
        """Return up to `count` pages with a number below `before` that hold tokens of a question, best first.

        What is told often straddles two pages, so pages i and i + 1 are scored as one: the sum, over the distinct
        tokens of the question that either holds, of ln((N - n + 0.5) / (n + 0.5)) with n of N pages holding it, none
        where n is beyond COMMON of N. Both come, the richer first; pairs below `worth` of the best do not. Of equal
        pairs that whose first page says more is better (an answer follows its words more often than it precedes
        them), then the lower number.
        Pages of `without` never come but count as if they might: what is in view already need not be outdone.
        """
        if not len(tokens):  # nothing was asked yet: blocks of a text search too
            return np.zeros(0, np.int64)
        span = max(0, min(before - self._first, self._reach()))
        single, pair = self._scores(np.asarray(tokens, np.int64), span)
        best = pair.max(initial=0.0)
        if best <= 0 or count <= 0:
            return np.zeros(0, np.int64)
        places = np.flatnonzero(pair >= worth * best)
        places = places[np.lexsort((places, -single[places], -pair[places]))]
        excluded = {number - self._first for number in without}
        found: dict[int, None] = {}
        for place in _in_turn(places, single):
            if self._held[place] and place not in excluded:
                found[place] = None
                if len(found) == count:
                    break
        return np.fromiter(found, np.int64, len(found)) + self._first

    def _reach(self) -> int:
        """Return one past the last row held."""
        held = np.flatnonzero(self._held)
        return int(held[-1]) + 1 if held.size else 0

    def _scores(self, tokens: Numbers, span: int) -> tuple[Weights, Weights]:
        """Return what each of the first `span` pages says alone, and with the page after it: [span], [span]."""
        useful, weights = self._weigh(np.unique(tokens[(tokens >= 0) & (tokens < self._vocabulary)]), span)
        rank = np.zeros(self._vocabulary + 1, self._tokens.dtype)
        rank[useful + 1] = np.arange(1, len(useful) + 1)
        ranks = rank.take(self._tokens[:span].ravel())
        places = np.flatnonzero(ranks != 0)
        found = ranks[places]
        # by token, then by page: numpy sorts 16 bits by radix, 40 times as fast as np.unique does pairs
        order = np.argsort(found, kind="stable")
        which, page = found[order].astype(np.int64) - 1, places[order] // PAGE_TOKENS
        # one key for a token in a page; the stride leaves a gap, so that no key follows one of another token
        step = np.diff(which * (span + 1) + page, prepend=-2)
        once = step != 0
        single = _sums(page[once], weights[which[once]], span)
        # what page i holds adds to the pair (i - 1, i) unless page i - 1 holds it too
        adds = once & (step != 1) & (page > 0)
        pair = single + _sums(page[adds] - 1, weights[which[adds]], span)
        pair[~self._held[:span]] = 0
        return single, pair

    def _weigh(self, wanted: Numbers, span: int) -> tuple[Numbers, Weights]:
        """Return those of `wanted` that tell the first `span` pages apart, and what each weighs."""
        beyond = np.bincount(_distinct(self._tokens[span : self._reach()]), minlength=self._vocabulary + 1)
        frequency = (self._frequency - beyond)[wanted + 1]
        page_count = int(np.count_nonzero(self._held[:span]))
        useful = (frequency > 0) & (frequency <= max(FEW, COMMON * page_count))
        frequency = frequency[useful]
        inverse = np.log((page_count - frequency + 0.5) / (frequency + 0.5)).clip(min=0)
        return wanted[useful], np.round(inverse * _STEPS) / _STEPS

    def _cover(self, lowest: int, highest: int) -> None:
        """Make room for these page numbers, keeping what is held; what was given up at either end is let go."""
        if lowest >= self._first and highest < self._first + len(self._held):
            return
        held = np.flatnonzero(self._held)
        start, stop = (int(held[0]), int(held[-1]) + 1) if held.size else (0, 0)
        if held.size:
            lowest, highest = min(lowest, self._first + start), max(highest, self._first + stop - 1)
        capacity = 1 << (highest - lowest).bit_length()
        place = self._first + start - lowest
        kept_held, kept_tokens, self._first = self._held[start:stop], self._tokens[start:stop], lowest
        self._held = np.zeros(capacity, np.bool_)
        self._tokens = np.zeros((capacity, PAGE_TOKENS), kept_tokens.dtype)
        self._held[place : place + stop - start] = kept_held
        self._tokens[place : place + stop - start] = kept_tokens


def _distinct(rows: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Return the tokens of all rows [N, 16], as kept, each once for a row that holds it."""
    ordered = np.sort(rows, axis=1)
    distinct = ordered != 0
    distinct[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    tokens: NDArray[np.unsignedinteger] = ordered[distinct]
    return tokens


def _sums(places: Numbers, weights: Weights, count: int) -> Weights:
    # of no places at all np.bincount gives integers
    return np.bincount(places, weights, minlength=count).astype(np.float64, copy=False)


def _in_turn(pairs: Numbers, single: Weights) -> Iterator[int]:
    """Yield both pages of each pair, the one that says more first."""
    for place in map(int, pairs):
        if place + 1 == len(single):
            yield place
        elif single[place + 1] > single[place]:
            yield from (place + 1, place)
        else:
            yield from (place, place + 1)
