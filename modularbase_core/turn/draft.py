"""Tokens that may come, looked up in what was said, and their logits, computed in the call of the token before them.

Prompt lookup decoding (Saxena, 2023), verified as in speculative decoding (Leviathan et al., arXiv 2211.17192). A draft
is certain of itself, and rows keep their bits in any call: what is sampled is the same as without, token for token.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Sequence_
from itertools import cycle, islice, takewhile
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.turn.decode import Decoding, Placed
from modularbase_core.turn.sequence import Sequence

LENGTHS: Final = (5, 3, 2)
"""Of the runs of tokens that are looked up: the longest that was seen before counts. 5 first made answers that edit
their prompt 1.09 times as fast as 3 first, and no others slower."""
ROW_COST: Final = 0.25
"""What a row more costs, as a share of a step of one row, and a little for looking: 0.1 to 0.2 were measured of nano,
0.13 of Qwen2-0.5B's shape in int8 (tests/bench/speculation.py). By a reckoning over texts, 0.13 would gain 1 % there
and lose 1 % of nano's prose."""
FIRST_CHANCE: Final = 0.5
"""How likely the next token of a draft comes, before anything is known of the conversation."""
LEARNING: Final = 0.1
"""How much of that each token changes."""
KEPT_WINDOWS: Final = 8
"""Trained windows of tokens that are looked up in before the oldest are forgotten."""


class Lookup:
    """The tokens of one conversation, and where each run of them was last followed by what."""

    def __init__(self) -> None:
        self.end = 0
        """One past the last token, counted from the conversation's first."""
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # a run: place of the token after it

    def __len__(self) -> int:
        return len(self._ids)

    def hear(self, token_ids: Sequence_[int], end: int) -> None:
        """Take in the tokens before `end` that are new."""
        for token_id in token_ids:
            for length in LENGTHS:
                if len(self._ids) >= length:
                    self._follows[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(token_id)
        self.end = end

    def draft(self, token_id: int, count: int) -> tuple[int, list[int]]:
        """Return up to `count` tokens that came when `token_id` was last said after the same, and how long that is.

        The length of the run is 0 where nothing is found.
        """
        for length in LENGTHS:
            place = self._follows.get((*self._ids[1 - length :], token_id))
            if place is not None:
                found = [*self._ids[place : place + count], token_id]
                return length, list(islice(cycle(found), count))  # what repeats itself goes on repeating itself
        return 0, []


class Ahead:
    """The logits of one answer, those of tokens that may come among them.

    As many are drafted as pay: the last of them comes as often as its row costs of a step. How often the next token of
    a draft comes is learnt from each that was looked up, for each length of run, whether it was computed or not.
    draft_tokens: most that are drafted. ends: tokens after which nothing comes.
    """

    def __init__(self, draft_tokens: int, ends: Iterable[int]) -> None:
        self._draft_tokens, self._ends = draft_tokens, frozenset(ends)
        self._lookup = Lookup()
        self._chances = dict.fromkeys(LENGTHS, FIRST_CHANCE)
        self._length = 0  # of the run by which the tokens below were found
        self._expected: deque[int] = deque()
        self._rows: deque[NDArray[np.float32]] = deque()  # what follows each of them, as far as computed
        self.drafted = 0
        """Tokens whose logits were computed before it was known whether they come."""
        self.accepted = 0
        """Those of them that came."""

    def clear(self) -> None:
        """Forget what was computed ahead, as another call goes on with the sequence."""
        self._expected.clear()
        self._rows.clear()

    def step(
        self, decoding: Decoding, sequence: Sequence, token_id: int, placed: Placed, left: int
    ) -> NDArray[np.float32]:
        """Add the next token to the sequence and return the logits [V] of what follows.

        left: most tokens that may still come after it.
        """
        logits = self._known(token_id)
        if logits is None:
            most = decoding.room(sequence, placed, min(self._draft_tokens + 1, left)) - 1
            draft = self._draft(sequence, token_id, most) if most > 0 else []
            logits, *ahead = decoding.look_ahead([sequence], [[token_id, *draft]], placed)
            self._rows.extend(ahead)
            self.drafted += len(draft)
        decoding.accept(sequence, token_id, placed)
        return logits

    def _known(self, token_id: int) -> NDArray[np.float32] | None:
        """Return the row of a token that came, if it was computed, and learn from whether it was expected."""
        if not self._expected:
            return None
        came = self._expected.popleft() == token_id
        self._chances[self._length] += LEARNING * (came - self._chances[self._length])
        if came and self._rows:
            self.accepted += 1
            return self._rows.popleft()
        self.clear()
        return None

    def _draft(self, sequence: Sequence, token_id: int, most: int) -> list[int]:
        """Return the tokens to compute after `token_id`; one more is expected than none, to learn from."""
        if sequence.tiers is None:
            return []
        heard, window = sequence.tiers.heard, sequence.table.window.trained_tokens
        if len(self._lookup) > KEPT_WINDOWS * window:
            self._lookup = Lookup()
        self._lookup.hear(heard.last(heard.end, min(heard.end - self._lookup.end, window)), heard.end)
        self._length, found = self._lookup.draft(token_id, most)
        expected = list(takewhile(lambda one: one not in self._ends, found))
        if not expected:
            return []
        count = paying(self._chances[self._length])
        self._expected.extend(expected[: max(1, count)])
        return expected[:count]


def paying(chance: float) -> int:
    """Return the tokens to draft if each comes with that chance where those before it did."""
    return int(math.log(ROW_COST) / math.log(min(chance, 0.99))) if chance > ROW_COST else 0
