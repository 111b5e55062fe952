"""What records were there before, in eight bytes each: sorted arrays that double, and a set of the newest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Seen:
    """A growing set of 64-bit hashes. Of a thousand million records one in 40 runs takes two for the same."""

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._old: list[NDArray[np.uint64]] = []

    def add(self, number: int) -> bool:
        """Take a hash in; tell whether it is new."""
        if number in self._new or any(_holds(part, number) for part in self._old):
            return False
        self._new.add(number)
        return True

    def settle(self) -> NDArray[np.uint64]:
        """Return what was added since the last call, sorted, and keep it in fewer bytes from now on."""
        new = np.array(sorted(self._new), np.uint64)
        self._new = set()
        self.extend(new)
        return new

    def extend(self, numbers: NDArray[np.uint64]) -> None:
        """Take sorted hashes in that are new."""
        while self._old and len(self._old[-1]) <= 2 * len(numbers):  # so there are few arrays to look through
            numbers = np.sort(np.concatenate((self._old.pop(), numbers)))
        self._old.append(numbers)


def _holds(part: NDArray[np.uint64], number: int) -> bool:
    at = int(np.searchsorted(part, np.uint64(number)))
    return at < len(part) and int(part[at]) == number
