"""What is told of a conversation's tiers, and what they are alike in for every conversation of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modularbase_core.context.codec import PageShapes
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window
from modularbase_core.text.controls import Controls

RECALL_SHARE: Final = 4
"""Recalled pages take at most one part in so many of the trained window."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """A page that was brought back: the token it begins with, and what found it."""

    token: int
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSizes:
    """What a conversation holds. cold_tokens: by form. index_bytes: of memory, for finding cold pages."""

    tokens: int
    hot_tokens: int
    cold_tokens: Mapping[str, int]
    cold_bytes: int
    limit_bytes: int
    index_bytes: int


@dataclass(slots=True)
class TierSettings:
    """What is alike for every conversation of a model.

    form: int8 or int4, of what is important. spell, importance: see `Judge`. vocabulary_size: of the base. base: JSON
    of which base it is; a conversation is taken up by the one that it was held with.
    """

    shapes: PageShapes
    window: Window
    vocabulary_size: int
    controls: Controls
    spell: Callable[[Sequence[int]], str]
    importance: Callable[[str, str, int], float]
    form: str = "int8"
    base: str = ""
    recall_pages: int = field(init=False)

    def __post_init__(self) -> None:
        room = min(self.window.recall_tokens, self.window.trained_tokens // RECALL_SHARE)
        self.recall_pages = room // PAGE_TOKENS
