"""What plugins hear of a running model: frozen values, handed to the hooks of `hookspecs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackLoaded:
    """A pack came into a slot. seconds: what loading took; prefetched: before any turn asked for it."""

    pack_id: str
    size_bytes: int
    seconds: float
    prefetched: bool = False


@dataclass(frozen=True, slots=True)
class PackEvicted:
    """A pack left its slot to make room for another."""

    pack_id: str
    successor: str


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """An answer ended.

    packs: each one's share of it, by id. scores: the router's, as plugins changed them; empty where the packs were
    named. reason: stop, length or cancelled. seconds: from the first token read to the last written.
    """

    packs: Mapping[str, float]
    scores: Mapping[str, float]
    reason: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    def __post_init__(self) -> None:
        # a plugin that changes them changes nothing of the turn
        object.__setattr__(self, "packs", dict(self.packs))
        object.__setattr__(self, "scores", dict(self.scores))
