"""The frozen values that the stages of a turn hand on, and the events that a caller sees."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RoutedPack:
    """One pack of a route.

    weight: its share, a route's sum to 1. score: the router's, 0..1, None where it gave none. reason: why it is
    here, a few words.
    """

    id: str
    weight: float
    score: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """The packs that answer a turn, heaviest first, and every score the router gave.

    notes: what went wrong on the way and was mended, a sentence each. abstained: no pack reached the threshold, so
    general chat answers.
    """

    packs: tuple[RoutedPack, ...]
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    abstained: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """The packs' ids."""
        return tuple(pack.id for pack in self.packs)


@dataclass(frozen=True, slots=True)
class Routed:
    """Event: who answers; see `Route`."""

    packs: tuple[RoutedPack, ...]
    scores: dict[str, float]
    notes: tuple[str, ...] = ()
    abstained: bool = False


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
    ended the answer; what was sampled of it stays in the caches, though it is not shown. notes: what went wrong since
    the answer began and was mended, a sentence each. shared_tokens: those of the prompt that were not understood again,
    as another conversation began alike. drafted_tokens: those whose logits were computed before it was known that they
    come; accepted_tokens: of them, those that came.
    """

    reason: str
    text: str
    prompt_tokens: int
    generated_tokens: int
    stop: str | None = None
    notes: tuple[str, ...] = ()
    shared_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


Event = Routed | Token | Finished
