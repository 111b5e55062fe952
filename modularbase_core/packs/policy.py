"""Which pack leaves when another needs its slot: strategies over the packs that may go.

Who may go at all (not held, not pinned, no resident) is decided in `slots`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, Protocol

WINDOW_USES: Final = 64
"""Uses that LFRU counts; older ones are forgotten, so that yesterday's favourite does not stay for ever."""


class Eviction(Protocol):
    """A strategy. It hears of every use and names who goes."""

    def used(self, pack_ids: Sequence[str]) -> None:
        """Hear that a turn uses these packs, the heaviest first."""

    def victim(self, candidates: Sequence[str]) -> str:
        """Return which of `candidates`, at least one, leaves."""


class LeastRecentlyUsed:
    """LRU: the pack that was unused for longest goes; one that never was used goes before all others."""

    def __init__(self) -> None:
        self._clock = 0
        self._last: dict[str, int] = {}

    def used(self, pack_ids: Sequence[str]) -> None:
        """Hear of a use; of one turn's packs the heaviest counts as the latest."""
        for pack_id in reversed(pack_ids):
            self._clock += 1
            self._last[pack_id] = self._clock

    def victim(self, candidates: Sequence[str]) -> str:
        """Return the least recently used of `candidates`."""
        return min(candidates, key=self.last_use)

    def last_use(self, pack_id: str) -> int:
        """Return when a pack was used last, 0 for never; later is larger."""
        return self._last.get(pack_id, 0)


class LeastFrequentRecentlyUsed:
    """LFRU (Bilal and Kang, 2017) for a few slots: the latest used is privileged, of the others the rarest used goes.

    With two slots that is LRU: only one is not privileged. `window`: uses that are counted.
    """

    def __init__(self, window: int = WINDOW_USES) -> None:
        self._recency = LeastRecentlyUsed()
        self._window: deque[str] = deque(maxlen=window)

    def used(self, pack_ids: Sequence[str]) -> None:
        """Hear of a use."""
        self._recency.used(pack_ids)
        self._window.extend(reversed(pack_ids))

    def victim(self, candidates: Sequence[str]) -> str:
        """Return the least often used but the latest one, unless it is alone; the least recent of equals."""
        latest = max(candidates, key=self._recency.last_use)
        others = [pack_id for pack_id in candidates if pack_id != latest] or [latest]
        counts = Counter(self._window)
        return min(others, key=lambda pack_id: (counts[pack_id], self._recency.last_use(pack_id)))


def eviction(name: str) -> Eviction:
    """Return the strategy that the settings call `name`: lru or lfru."""
    return LeastFrequentRecentlyUsed() if name == "lfru" else LeastRecentlyUsed()
