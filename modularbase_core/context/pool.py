"""A fixed number of pages, lent to page tables: what is not free is refused, nothing is lost or lent twice."""

from __future__ import annotations

from collections.abc import Iterable

from modularbase_core.context.page import PageTable
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS


class PagePool:
    """Pages 0 .. page_count-1 of one set of buffers; `name` is what an error calls them."""

    def __init__(self, name: str, page_count: int) -> None:
        self.name = name
        self.page_count = page_count
        self._free = list(range(page_count - 1, -1, -1))  # a stack: the page freed last is warm and goes first
        self._lent = bytearray(page_count)

    @property
    def free_count(self) -> int:
        """Pages not lent to anyone."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Lend `count` pages, all or none.

        Raises BudgetError if fewer are free.
        """
        if count > len(self._free):
            raise BudgetError(
                f"{self.name}: {count} more pages of {PAGE_TOKENS} tokens are needed but {len(self._free)} of "
                f"{self.page_count} are free; shorten the prompt, end a conversation or give it more memory"
            )
        page_ids = [self._free.pop() for _ in range(count)]
        for page in page_ids:
            self._lent[page] = 1
        return page_ids

    def free(self, page_ids: Iterable[int]) -> None:
        """Take pages back."""
        for page in page_ids:
            assert 0 <= page < self.page_count, f"{self.name} has no page {page}"
            assert self._lent[page], f"page {page} of {self.name} is freed twice"
            self._lent[page] = 0
            self._free.append(page)

    def extend(self, table: PageTable, count: int) -> None:
        """Attach what `table` lacks for `count` more tokens; on BudgetError the table stays as it was."""
        table.attach(self.allocate(table.pages_missing(count)))

    def trim(self, table: PageTable, start: int | None = None) -> None:
        """Take back what no token from `start` (the next one) on can see; see `PageTable.release_invisible`."""
        self.free(table.release_invisible(start))

    def skip(self, table: PageTable, token: int) -> None:
        """Let `table` leave the tokens up to `token` out."""
        self.free(table.skip_to(token))

    def release(self, table: PageTable) -> None:
        """Take every page of `table` back and empty it."""
        self.free(table.clear())
