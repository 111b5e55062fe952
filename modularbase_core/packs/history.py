"""Which pack tends to follow which: counts of one user's turns, kept in a small file.

Pack ids and counts alone are kept, nothing of what was said. The file may be lost or damaged without harm.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from modularbase_core.sdk.files import write_atomically

MAX_PACKS: Final = 64
"""Packs remembered, and followers of each; the rarest are forgotten."""

MAX_TURNS: Final = 256
"""Turns counted for a pack before its counts are halved, so that habits may change."""

_LEAST_COUNT: Final = 2
_LEAST_SHARE: Final = 0.1


class History:
    """Counts of pack after pack. path: where they are kept, None for nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._counts = {} if path is None else _read(path)
        self._unsaved: list[tuple[str, str]] = []

    def observe(self, before: str, now: str) -> None:
        """Count that a turn of `now` followed one of `before`."""
        _count(self._counts, before, now)
        self._unsaved.append((before, now))

    def likely(self, after: str) -> list[str]:
        """Return who follows `after` more than by chance, the likeliest first."""
        followers = self._counts.get(after, {})
        least = max(_LEAST_COUNT, _LEAST_SHARE * sum(followers.values()))
        return sorted((one for one in followers if followers[one] >= least), key=lambda one: (-followers[one], one))

    def save(self) -> None:
        """Add what was counted to the file, which others may have written to; where that fails it is lost."""
        if self._path is not None and self._unsaved:
            counts = _read(self._path)
            for before, now in self._unsaved:
                _count(counts, before, now)
            with suppress(OSError):
                write_atomically(self._path, [json.dumps(counts).encode()])
        self._unsaved.clear()


def _count(counts: dict[str, dict[str, int]], before: str, now: str) -> None:
    followers = counts.pop(before, {})
    followers[now] = followers.get(now, 0) + 1
    if sum(followers.values()) > MAX_TURNS:
        followers = {pack_id: count // 2 for pack_id, count in followers.items() if count > 1}
    counts[before] = _largest(followers)
    if len(counts) > MAX_PACKS:
        del counts[next(iter(counts))]  # the one that was left behind for longest


def _largest(counts: dict[str, int]) -> dict[str, int]:
    return {key: counts[key] for key in sorted(counts, key=lambda key: -counts[key])[:MAX_PACKS]}


def _read(path: Path) -> dict[str, dict[str, int]]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    counts: dict[str, dict[str, int]] = {}
    for before, followers in value.items() if isinstance(value, dict) else ():
        if isinstance(followers, dict):
            sound = {key: count for key, count in followers.items() if type(count) is int and 0 < count <= MAX_TURNS}
            counts[before] = _largest(sound)
    return {before: counts[before] for before in list(counts)[:MAX_PACKS]}
