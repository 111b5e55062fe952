"""The last tokens of a conversation, and who speaks at each: until their pages are searched and kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.judge import WEIGHT
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.text.controls import Controls
from modularbase_core.text.roles import Roles


class Heard:
    """Token ids from `first` on; `typed` says whether what comes next is typed, not read from a file."""

    def __init__(self, controls: Controls) -> None:
        self.typed = True
        self.first = 0
        self._roles = Roles(controls)
        self._ids: list[int] = []
        self._who: list[tuple[int, str, bool]] = []  # from a token on: who speaks, and whether it was typed

    @property
    def end(self) -> int:
        """One past the last token."""
        return self.first + len(self._ids)

    @property
    def role(self) -> str:
        """Who is in the middle of a message, empty between messages."""
        return self._roles.role

    def note(self, token_ids: Sequence[int]) -> None:
        """Take in what was understood next."""
        start = self.end
        if not self._who or self._who[-1][2] != self.typed:
            self._who.append((start, self.role, self.typed))
        self._who += [(start + place, role, self.typed) for place, role in self._roles.follow_all(token_ids)]
        self._ids.extend(token_ids)

    def rewind(self, tokens: int) -> None:
        """Forget what comes from `tokens` on."""
        del self._ids[max(0, tokens - self.first) :]
        self._who = [one for one in self._who if one[0] < tokens]
        self._roles.rewind(self._who[-1][1] if self._who else "", self._ids)

    def restore(self, token_ids: NDArray[np.int32], end: int, count: int) -> None:
        """Stand at token `end` after `token_ids`, the whole conversation; keep the last `count` of them."""
        self._roles.follow_all(token_ids.tolist())
        self._ids = token_ids[len(token_ids) - count :].tolist()
        self.first = end - count
        self._who = [(self.first, self.role, True)]

    def last(self, token: int, count: int) -> list[int]:
        """Return the `count` token ids before `token`, or as many as are still known."""
        end = token - self.first
        return self._ids[max(0, end - count) : end]

    def page(self, index: int) -> NDArray[np.int32]:
        """Return the 16 tokens of a whole page."""
        first = index * PAGE_TOKENS - self.first
        assert first >= 0, f"page {index} was read before token {self.first}"
        return np.array(self._ids[first : first + PAGE_TOKENS], np.int32)

    def who(self, index: int) -> tuple[str, bool]:
        """Return who speaks most weightily on a page, and whether all of it was typed."""
        first, end = index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS
        runs = [one for one in self._who if one[0] < end]
        there = [*[one for one in runs if one[0] <= first][-1:], *(one for one in runs if one[0] > first)]
        return max((role for _, role, _ in there), key=WEIGHT.index, default=""), all(typed for *_, typed in there)

    def forget(self, token: int) -> None:
        """Let go of the tokens before `token`."""
        if token > self.first:
            del self._ids[: token - self.first]
            self.first = token
            passed = [one for one in self._who if one[0] <= token]
            self._who = [*passed[-1:], *self._who[len(passed) :]]
