"""What is asked of the engine, and how far it has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Sequence_
from contextlib import ExitStack
from dataclasses import dataclass, field

from modularbase_core.text.stream import TextStream
from modularbase_core.turn.draft import Ahead
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.sample import Sampler, SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One turn. token_ids: what to add to the sequence; question: where in them the user's message lies.

    message: that message's text, for plugins that route by it. packs: the packs to use, or none to let the router
    choose.
    """

    sequence: Sequence
    token_ids: Sequence_[int]
    question: tuple[int, int]
    sampling: SamplingConfig
    packs: tuple[str, ...] = ()
    message: str = ""


@dataclass(slots=True, eq=False)
class Running:
    """A request under way.

    ahead: what was computed of tokens that may come. token_id: the last one sampled, told but not in the caches; -1
    while there is none. start: tokens of the sequence before this turn, kept: what was pending then. unread: of a
    long turn, what is still to be read before the rest is understood and routed. before: the packs of the turn
    before. unloadable: packs that could not be brought in for it. since: when it began, by the performance counter.
    error: what ended it, for its own caller alone.
    """

    request: Request
    sampler: Sampler
    stream: TextStream
    ahead: Ahead
    events: deque[Event] = field(default_factory=deque)
    holds: ExitStack = field(default_factory=ExitStack)
    placed: dict[str, PlacedPack] = field(default_factory=dict)
    token_id: int = -1
    generated: int = 0
    start: int = 0
    kept: tuple[int, ...] = ()
    unread: list[int] = field(default_factory=list)
    unloadable: set[str] = field(default_factory=set)
    before: tuple[str, ...] = ()
    begun: bool = False
    has_read: bool = False
    foreseen: bool = False
    understood: bool = False
    since: float = 0.0
    finished: bool = False
    error: Exception | None = None
