"""What a cold store holds, in memory: its pages by number, counted by form, and which of them matter least."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from modularbase_core.context.codec import FORMS


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
        self._held: dict[int, Held] = {}
        self._pages: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hold(self, index: int, held: Held) -> None:
        """Note a page, in place of the one of this number."""
        with self._lock:
            self._forget(index)
            self._held[index] = held
            self._count(held, 1)

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
            wanted = [
                (held.importance, index) for index, held in self._held.items() if held.form in forms and not held.pinned
            ]
        return [index for _, index in sorted(wanted)]

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, index: object) -> bool:
        return index in self._held

    def _forget(self, index: int) -> None:
        held = self._held.pop(index, None)
        if held is not None:
            self._count(held, -1)

    def _count(self, held: Held, by: int) -> None:
        self._pages[held.form] += by
        self._tokens[held.form] += by * held.token_count
