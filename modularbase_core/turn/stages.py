"""The frozen values that the stages of a turn hand on, and the events that a caller sees."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RoutedPack:
    """One pack of a route.

    weight: its share, a route's sum to 1. score: the router's, 0..1, None where it gave none.
    """

    id: str
    weight: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Route:
    """The packs that answer a turn, heaviest first, and every score the router gave."""

    packs: tuple[RoutedPack, ...]
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The packs' ids."""
        return tuple(pack.id for pack in self.packs)


@dataclass(frozen=True, slots=True)
class Routed:
    """Event: who answers. notes: what went wrong on the way and was mended, a sentence each."""

    packs: tuple[RoutedPack, ...]
    scores: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """Event: one sampled token. text: what became certain with it, perhaps nothing yet, perhaps more than it."""

    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: the end.

    reason: stop, length or cancelled. text: what was still held back, to be shown too. stop: the stop string that
    ended the answer; what was sampled of it stays in the caches, though it is not shown.
    """

    reason: str
    text: str
    prompt_tokens: int
    generated_tokens: int
    stop: str | None = None


Event = Routed | Token | Finished
