"""What plugins hear of a running model: frozen values, handed to the hooks of `hookspecs`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackLoaded:
    """A pack came into a slot. prefetched: before any turn asked for it."""

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
    """An answer ended. packs: weight by id; reason: stop, length or cancelled."""

    packs: dict[str, float]
    scores: dict[str, float]
    reason: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float
