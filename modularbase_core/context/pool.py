"""A fixed number of pages, lent to page tables: what is not free is refused, nothing is lost.

A page may have several holders, as where conversations begin alike; it is written only while it has one. Who shares
what with whom is decided in `prefix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modularbase_core.context.page import PageTable
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS


class PagePool:
    """Pages 0 .. page_count-1 of one set of buffers; `name` is what an error calls them."""

    def __init__(self, name: str, page_count: int) -> None:
        self.name = name
        self.page_count = page_count
        self._free = list(range(page_count - 1, -1, -1))  # a stack: the page freed last is warm and goes first
        self._holders = [0] * page_count
        self.when_short: Callable[[int], object] = lambda missing: None
        """Asked to free pages, with how many are missing, before they are refused."""

    @property
    def free_count(self) -> int:
        """Pages not lent to anyone."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """Return how many hold `page`; 0 while it is free."""
        assert 0 <= page < self.page_count, f"{self.name} has no page {page}"
        return self._holders[page]

    def writable(self, page: int) -> bool:
        """Return whether `page` has exactly one holder, who may write it."""
        return self.holders(page) == 1

    def allocate(self, count: int) -> list[int]:
        """Lend `count` pages, all or none.

        Raises BudgetError if fewer are free.
        """
        if count > len(self._free):
            self.when_short(count - len(self._free))
        if count > len(self._free):
            raise BudgetError(
                f"{self.name}: {count} more pages of {PAGE_TOKENS} tokens are needed but {len(self._free)} of "
                f"{self.page_count} are free; shorten the prompt, end a conversation or give it more memory"
            )
        page_ids = [self._free.pop() for _ in range(count)]
        for page in page_ids:
            self._holders[page] = 1
        return page_ids

    def share(self, page_ids: Iterable[int]) -> None:
        """Lend pages that are lent already to one holder more, who frees them as the others do."""
        for page in page_ids:
            assert self.holders(page), f"page {page} of {self.name} is free and cannot be shared"
            self._holders[page] += 1

    def free(self, page_ids: Iterable[int]) -> None:
        """Take pages back from one of their holders; they are free when none is left."""
        for page in page_ids:
            assert self.holders(page), f"page {page} of {self.name} is freed twice"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def fits(self, table: PageTable, count: int) -> bool:
        """Tell whether `table` holds `count` more tokens without anyone being asked to free pages."""
        return table.pages_missing(count) <= len(self._free)

    def extend(self, table: PageTable, count: int) -> None:
        """Attach what `table` lacks for `count` more tokens; on BudgetError the table stays as it was."""
        table.attach(self.allocate(table.pages_missing(count)))
        # every write is prepared here, so this is where one into somebody else's memory is caught
        assert all(map(self.writable, {slot // PAGE_TOKENS for slot in table.slots(table.tokens, count)})), (
            f"{self.name}: tokens from {table.tokens} on would be written to a shared page"
        )

    def trim(self, table: PageTable, start: int | None = None) -> None:
        """Take back what no token from `start` (the next one) on can see; see `PageTable.release_invisible`."""
        self.free(table.release_invisible(start))

    def cut(self, table: PageTable) -> None:
        """Take back what is attached to `table` for tokens to come: where some were taken back others may read it."""
        self.free(table.cut())

    def skip(self, table: PageTable, token: int) -> None:
        """Let `table` leave the tokens up to `token` out."""
        self.free(table.skip_to(token))

    def release(self, table: PageTable) -> None:
        """Take every page of `table` back and empty it."""
        self.free(table.clear())
