"""What a turn knows of one conversation in the caches: pages, watermarks, the route of the turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field

from modularbase_core.context.beginning import Beginning
from modularbase_core.context.page import PageTable
from modularbase_core.context.tiers import Tiers
from modularbase_core.turn.sample import PENALISED_TOKENS
from modularbase_core.turn.stages import Route


@dataclass(slots=True, eq=False)
class Sequence:
    """One conversation.

    table: its pages in the hot tier. fused: tokens that packs and fusion are through with. seen: the last
    token ids, for the repetition penalty. pending: tokens that were told but are not in the caches yet. tiers: what it
    keeps beyond the hot window, None where it forgets. beginning: what of it others may share.
    """

    table: PageTable
    fused: int = 0
    route: Route = field(default_factory=lambda: Route(()))
    seen: deque[int] = field(default_factory=lambda: deque(maxlen=PENALISED_TOKENS))
    pending: list[int] = field(default_factory=list)
    tiers: Tiers | None = None
    beginning: Beginning = field(init=False)

    def __post_init__(self) -> None:
        self.beginning = Beginning(self.table.window.fully_visible_tokens)

    def advance(self, token_ids: Sequence_[int]) -> None:
        """Note that these tokens are understood now, after the call that wrote them."""
        self.beginning.note(self.table.tokens, token_ids)
        self.table.advance(len(token_ids))
        if self.tiers is not None:
            self.tiers.heard.note(token_ids)

    def stretch(self, count: int) -> int:
        """Return how many of `count` more tokens may be understood before they are fused.

        With tiers, once pages fall out of sight, all up to the end of the block: what the next one sees again is
        chosen, and what leaves is kept, when everything before it is through.
        """
        window, start = self.table.window, self.table.tokens
        if self.tiers is None or start + count <= window.fully_visible_tokens:
            return count
        return min(count, window.block_tokens - start % window.block_tokens)

    def rewind(self, tokens: int) -> None:
        """Take the tokens from `tokens` on back."""
        self.fused = min(self.fused, tokens)
        self.table.rewind(tokens)
        self.beginning.rewind(tokens)
        if self.tiers is not None:
            self.tiers.rewind(tokens)

    def reset(self) -> None:
        """Forget everything but the table, which is emptied by its pool, and let go of the tiers' store."""
        self.fused, self.route = 0, Route(())
        self.beginning = Beginning(self.table.window.fully_visible_tokens)
        self.seen.clear()
        self.pending.clear()
        if self.tiers is not None:
            self.tiers.close()
