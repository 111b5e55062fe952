"""What a conversation begins with, taken over from others that began alike, and handed on.

Decides when pages of the cache are attached, exchanged, copied and handed in, so that none is written that others
hold. Which prefixes are known is `prefix`'s; by which route a turn is fused, and how pages are copied, the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modularbase_core.context.page import PageTable
from modularbase_core.context.pool import PagePool
from modularbase_core.context.prefix import PrefixCache
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS


@dataclass(slots=True)
class Beginning:
    """The first tokens of one conversation, up to `limit`: as far as each sees all before it, and nothing recalled.

    token_ids: those that are understood. routes: who fused them before the turn that runs, as `prefix.Routes`; route:
    who does now. shared: tokens that were taken over. kept: pages that were handed to the cache.
    """

    limit: int
    token_ids: list[int] = field(default_factory=list)
    routes: list[tuple[int, bytes]] = field(default_factory=list)
    route: bytes = b""
    shared: int = 0
    kept: int = 0

    def note(self, first: int, token_ids: Sequence[int]) -> None:
        """Note tokens that are understood from `first` on.

        A conversation that is taken up from disk is not known from token 0 on: nothing of it is noted.
        """
        if len(self.token_ids) == first:
            self.token_ids += token_ids[: self.limit - first]

    def begin_turn(self, route: bytes, fused: int) -> None:
        """Let `route` fuse what comes after the first `fused` tokens."""
        done = self.routes[-1][0] if self.routes else 0
        if done < min(fused, self.limit):
            self.routes.append((fused, self.route))
        self.route = route

    def rewind(self, tokens: int) -> None:
        """Forget what comes from `tokens` on."""
        del self.token_ids[tokens:]
        self.routes = [(min(end, tokens), route) for end, route in self.routes]
        self.shared = min(self.shared, tokens)
        if not tokens:
            self.kept = 0

    def close(self) -> None:
        """Hand nothing more of it to the cache."""
        self.kept = self.limit // PAGE_TOKENS


class Beginnings:
    """Those of all conversations over one pool.

    regime: see `prefix.chain`. copy(source, target): copy all of a page that does not depend on routes.
    """

    def __init__(self, cache: PrefixCache, pool: PagePool, copy: Callable[[int, int], None], regime: bytes) -> None:
        self.cache = cache
        self._pool, self._copy, self._regime = pool, copy, regime

    def adopt(self, table: PageTable, token_ids: Sequence[int]) -> int:
        """Attach to an empty table what is known of its first tokens; return how many are understood with it.

        One at least is left. Who fused those pages does not matter yet: `claim` sees to that.
        """
        assert not table.tokens, f"{table.tokens} tokens are in place already"
        self._pool.cut(table)
        pages = self.cache.match(token_ids[: table.window.fully_visible_tokens], self._regime, ()).pages
        table.attach(pages)
        return len(pages) * PAGE_TOKENS

    def claim(self, table: PageTable, beginning: Beginning) -> int:
        """Before the first token is fused, by the route of the turn: return how many of them need not be.

        Their pages are those of others who went by that route. The rest of what was adopted is copied where others
        hold it, to be fused anew. Raises BudgetError where there is no room, not even without the cache.
        """
        token_ids = beginning.token_ids
        match = self.cache.match(token_ids, self._regime, [(len(token_ids), beginning.route)])
        self._pool.free(match.pages[match.whole :])
        for index, page in enumerate(match.pages[: match.whole]):
            self._pool.free([table.replace(index, page)])
        for index in range(match.whole, -(-table.tokens // PAGE_TOKENS)):
            if not self._pool.writable(table.page(index)):
                self._own(table, index)
        return match.whole * PAGE_TOKENS

    def _own(self, table: PageTable, index: int) -> None:
        page = table.page(index)
        try:
            (new,) = self._pool.allocate(1)
        except BudgetError:
            self.cache.clear()  # all that it holds beside the free pages is held by conversations too
            if self._pool.writable(page):
                return
            (new,) = self._pool.allocate(1)
        self._copy(page, new)
        self._pool.free([table.replace(index, new)])

    def keep(self, table: PageTable, beginning: Beginning, fused: int) -> None:
        """Hand the full pages of the first `fused` tokens to the cache; none of them has left the table yet."""
        end = min(fused, len(beginning.token_ids)) // PAGE_TOKENS
        if end > beginning.kept:
            pages = [table.page(index) for index in range(end)]
            routes = [*beginning.routes, (fused, beginning.route)]
            self.cache.insert(beginning.token_ids, pages, self._regime, routes)
            beginning.kept = end

    def rewound(self, table: PageTable) -> None:
        """After tokens of a turn that failed were taken back: see that nobody else reads where they are written anew.

        The page in the middle of which the table stands is shared only where that turn itself handed it in.
        """
        self._pool.cut(table)
        index, offset = divmod(table.tokens, PAGE_TOKENS)
        if offset and table.holds(index) and not self._pool.writable(table.page(index)):
            self.cache.clear()
