"""Which page holds which token of one sequence, and which pages a token sees: pure ids, no memory.

The visible list is a function of the absolute token index alone (see `PageTable.visible`), so chunked prefill,
whole prefill and decode agree. One class serves the base and a pack that joined late and lacks early pages.
Where free pages come from is `pool`'s; moving their contents is left to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modularbase_core.sdk.architecture import PAGE_TOKENS, Window


@dataclass(frozen=True, slots=True)
class Call:
    """The rows of one sequence in one kernel call; never across a block boundary.

    start: absolute index of the first token. slots: page * 16 + offset for each of `count` tokens.
    visible: page ids in compact order, the page of the last token included. context: visible tokens before the
    first one; row i sits at position context + i of that list.
    """

    start: int
    count: int
    slots: Sequence[int]
    context: int
    visible: Sequence[int]


class PageTable:
    """The pages of one sequence by absolute page index, with `tokens` as the watermark.

    recall: absolute indices of pages brought back for the block of the next token; empty while nothing recalls.
    """

    __slots__ = ("_page", "_reach", "recall", "tokens", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self.tokens = 0
        """Tokens ingested or skipped: the absolute index of the next one."""
        self.recall: tuple[int, ...] = ()
        self._page: dict[int, int] = {}  # absolute page index: page id; only what is held, however long the text
        self._reach = 0  # one past the last page index attached or skipped

    @property
    def page_ids(self) -> list[int]:
        """Every page held."""
        return list(self._page.values())

    def pages_missing(self, count: int) -> int:
        """Return how many pages to `attach` before `count` more tokens fit."""
        return max(0, -(-(self.tokens + count) // PAGE_TOKENS) - self._reach)

    def attach(self, page_ids: Sequence[int]) -> None:
        """Take empty pages for the tokens that come next."""
        self._page.update(enumerate(page_ids, self._reach))
        self._reach += len(page_ids)

    def advance(self, count: int) -> None:
        """Note that `count` more tokens are in their pages; after the call that wrote them."""
        assert count >= 0
        assert self.tokens + count <= self._reach * PAGE_TOKENS, "advanced past the attached pages"
        self.tokens += count

    def visible(self, token: int) -> tuple[list[int], int]:
        """Return the page ids that `token` sees and how many tokens in them come before it.

        Sinks, then recalled pages, then from max(sinks, block_start - recent) on, up to its own page; of those,
        the ones present (StreamingLLM, Xiao et al., 2023, on a grid of blocks).
        """
        own, sinks = token // PAGE_TOKENS, self.window.sink_tokens // PAGE_TOKENS
        recent = self.first_recent(token) // PAGE_TOKENS
        recalled = [index for index in self.recall if sinks <= index < recent]
        listed = (*range(min(sinks, own + 1)), *recalled, *range(recent, own + 1))
        present = [self._page[index] for index in listed if index in self._page]
        assert own in self._page, f"token {token} has no page"
        return present, (len(present) - 1) * PAGE_TOKENS + token % PAGE_TOKENS

    def first_recent(self, token: int) -> int:
        """Return the absolute index of the first recent token that `token` sees, a multiple of 16."""
        block = self.window.block_tokens
        return max(self.window.sink_tokens, token // block * block - self.window.recent_tokens)

    def slots(self, start: int, count: int) -> list[int]:
        """Return where `count` tokens from `start` on lie: page * 16 + offset."""
        place = (divmod(token, PAGE_TOKENS) for token in range(start, start + count))
        return [self._page[index] * PAGE_TOKENS + offset for index, offset in place]

    def release_invisible(self, start: int | None = None) -> list[int]:
        """Give up and return the pages that no token from `start` (the next one) on can see.

        Call it once every reader is past `start`: a pack reads hidden states from the base's pages.
        """
        start = self.tokens if start is None else start
        assert start <= self.tokens, f"token {start} is not in place yet"
        sinks, recent = self.window.sink_tokens // PAGE_TOKENS, self.first_recent(start) // PAGE_TOKENS
        kept = {*range(sinks), *self.recall}
        return [self._page.pop(index) for index in list(self._page) if index < recent and index not in kept]

    def behind(self, start: int) -> list[tuple[int, int]]:
        """Return the spans (first, one past the last) below `start` that it can see and are not ingested.

        A pack that joins at `start` ingests these first, from hidden states, with `skip_to` between them.
        """
        sinks = min(self.window.sink_tokens, start)
        spans = [(self.tokens, sinks), (max(self.tokens, self.first_recent(start)), start)]
        if spans[0][1] == spans[1][0]:
            spans = [(self.tokens, start)]
        return [(first, last) for first, last in spans if first < last]

    def skip_to(self, token: int) -> list[int]:
        """Leave the tokens up to `token` (a multiple of 16) out; return pages that are of no use any more.

        A page that holds only some of its tokens goes too: every listed page before the last one is full.
        """
        assert token >= self.tokens, f"cannot skip back from {self.tokens} to {token}"
        if token == self.tokens:
            return []
        assert token % PAGE_TOKENS == 0, f"cannot skip into the middle of a page, to {token}"
        whole = self.tokens // PAGE_TOKENS
        dropped = [self._page.pop(index) for index in list(self._page) if index >= whole]
        self._reach = token // PAGE_TOKENS
        self.tokens = token
        return dropped

    def rewind(self, tokens: int) -> None:
        """Take the tokens from `tokens` on back; their pages stay attached and are written again.

        Only as far as nothing has been released since.
        """
        assert 0 <= tokens <= self.tokens, f"cannot rewind from {self.tokens} to {tokens}"
        self.tokens = tokens

    def clear(self) -> list[int]:
        """Forget the sequence; return every page it held."""
        held = self.page_ids
        self.tokens, self.recall, self._reach = 0, (), 0
        self._page.clear()
        return held


def plan_call(table: PageTable, count: int, start: int | None = None) -> Call:
    """Lay out `count` rows from `start` (the next token) on; the pages must be attached.

    `start` may lie behind the watermark, as where fusion follows understanding over the same pages.
    """
    first = table.tokens if start is None else start
    last = first + count - 1
    assert count > 0
    assert first <= table.tokens, f"cannot begin at {first} with {table.tokens} tokens in place"
    block = table.window.block_tokens
    assert first // block == last // block, f"tokens {first} to {last} cross a block of {block}"
    visible, before_last = table.visible(last)
    return Call(first, count, table.slots(first, count), before_last - (count - 1), visible)


def split_on_blocks(start: int, count: int, block: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut `count` tokens from `start` on into (start, count) of at most `max_rows`, none across a block."""
    assert max_rows > 0
    end = start + count
    while start < end:
        rows = min(end - start, max_rows, block - start % block)
        yield start, rows
        start += rows
