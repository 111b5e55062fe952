"""What a turn knows of one conversation in the caches: pages, watermarks, the route of the turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from modularbase_core.context.page import PageTable
from modularbase_core.turn.stages import Route


@dataclass(slots=True, eq=False)
class Sequence:
    """One conversation.

    table: its pages in the hot tier. fused: tokens that packs and fusion are through with. seen: every token id
    so far, for the repetition penalty. pending: tokens that were told but are not in the caches yet.
    """

    table: PageTable
    fused: int = 0
    route: Route = field(default_factory=lambda: Route(()))
    seen: set[int] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything but the table, which is emptied by its pool."""
        self.fused, self.route = 0, Route(())
        self.seen.clear()
        self.pending.clear()
