"""What a cold store holds, in memory: its pages by number, counted by form, and which of them matter least."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from modularbase_core.context.codec import FORMS

# form: 0 where there is no page, else one more than its place in FORMS
_ROW: Final = np.dtype([("form", "u1"), ("tokens", "u1"), ("pinned", "?"), ("importance", "<f4")], align=True)


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept in memory of a page; token_count: tokens that are not padding."""

    form: str
    token_count: int
    importance: float
    pinned: bool


class Holdings:
    """Pages by number; any thread may ask while another one writes."""

    def __init__(self) -> None:
        # 8 bytes a page, where an object each would take 250: a million tokens have 62,500 pages
        self._held = np.zeros(64, _ROW)
        self._pages: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hold(self, index: int, held: Held) -> None:
        """Note a page, in place of the one of this number."""
        with self._lock:
            self._forget(index)
            if index >= len(self._held):
                grown = np.zeros(max(index + 1, 2 * len(self._held)), _ROW)
                grown[: len(self._held)] = self._held
                self._held = grown
            self._held[index] = (FORMS.index(held.form) + 1, held.token_count, held.pinned, held.importance)
            self._count(held.form, held.token_count, 1)

    def favour(self, indices: Iterable[int]) -> None:
        """Note that pages were attended to: each is half as far from the highest importance as it was."""
        with self._lock:
            for index in indices:
                if index in self:
                    self._held["importance"][index] = (self._held["importance"][index] + 1) / 2

    def forget(self, index: int) -> None:
        """Note that a page is gone; that it was not there is no error."""
        with self._lock:
            self._forget(index)

    @property
    def pages(self) -> dict[str, int]:
        """Pages by form."""
        with self._lock:
            return {form: self._pages[form] for form in FORMS}

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by form, padding not counted."""
        with self._lock:
            return {form: self._tokens[form] for form in FORMS}

    def least_important(self, forms: Collection[str]) -> list[int]:
        """Return the numbers of the pages of `forms` that are not pinned, by importance, then the oldest first."""
        with self._lock:
            codes = [FORMS.index(form) + 1 for form in forms]
            wanted = np.flatnonzero(np.isin(self._held["form"], codes) & ~self._held["pinned"])
            order = np.argsort(self._held["importance"][wanted], kind="stable")
        numbers: list[int] = wanted[order].tolist()
        return numbers

    def __len__(self) -> int:
        return sum(self._pages.values())

    def __contains__(self, index: object) -> bool:
        held = self._held
        return isinstance(index, int) and 0 <= index < len(held) and bool(held["form"][index])

    def _forget(self, index: int) -> None:
        if index in self:
            code, token_count, _, _ = self._held[index]
            self._count(FORMS[code - 1], int(token_count), -1)
            self._held[index] = 0

    def _count(self, form: str, token_count: int, by: int) -> None:
        self._pages[form] += by
        self._tokens[form] += by * token_count
