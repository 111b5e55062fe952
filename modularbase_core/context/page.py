"""Which page holds which token of one sequence, and which pages a token sees: pure ids, no memory.

The visible list is a function of the absolute token index alone (see `PageTable.visible`), so chunked prefill,
whole prefill and decode agree. One class serves the base and a pack that joined late and lacks early pages.
Where free pages come from is `pool`'s; moving their contents is left to others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    Pages brought back are told by stretches: from a token on, the tokens see these, until the next stretch begins.
    """

    __slots__ = ("_page", "_placed", "_reach", "_recalls", "tokens", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self.tokens = 0
        """Tokens ingested or skipped: the absolute index of the next one."""
        self._page: dict[int, int] = {}  # absolute page index: page id; only what is held, however long the text
        self._reach = 0  # one past the last page index attached or skipped
        self._recalls: list[tuple[int, tuple[int, ...]]] = []  # (first token, page indices), by token
        self._placed: set[int] = set()  # pages held out of turn, whole

    @property
    def page_ids(self) -> list[int]:
        """Every page held."""
        return list(self._page.values())

    @property
    def recalls(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """The stretches: (first token, the absolute indices of the pages that its tokens see again)."""
        return tuple(self._recalls)

    def recalled(self, token: int) -> tuple[int, ...]:
        """Return the absolute indices, rising, of the pages that `token` sees again."""
        return next((pages for first, pages in reversed(self._recalls) if first <= token), ())

    def recall(self, token: int, indices: Sequence[int]) -> None:
        """Let the tokens from `token` on see these pages again, which are held: by `place`, or still.

        Stretches that began at or after `token` are forgotten.
        """
        self._recalls = [one for one in self._recalls if one[0] < token]
        chosen = tuple(sorted(indices))
        if chosen != (self._recalls[-1][1] if self._recalls else ()):
            self._recalls.append((token, chosen))

    def follow(self, other: PageTable) -> None:
        """Take over the stretches of `other`; the pages are still to be placed."""
        self._recalls = list(other._recalls)

    def restore(self, tokens: int) -> None:
        """Stand at `tokens` in a table that is empty; the pages that its tokens see are still to be placed."""
        assert not self._page, "a table that holds pages is restored"
        self.tokens, self._reach = tokens, -(-tokens // PAGE_TOKENS)

    def lacking(self, indices: Sequence[int]) -> list[int]:
        """Return which of these pages are not held whole."""
        whole = self.tokens // PAGE_TOKENS
        return [index for index in indices if index not in self._placed and (index >= whole or index not in self._page)]

    def held(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut the tokens first .. end into the spans whose pages are held: one damaged on disk leaves a gap."""
        gaps = [page for page in range(first // PAGE_TOKENS, -(-end // PAGE_TOKENS)) if page not in self._page]
        for page in gaps:
            if first < page * PAGE_TOKENS:
                yield first, page * PAGE_TOKENS
            first = (page + 1) * PAGE_TOKENS
        if first < end:
            yield first, end

    def place(self, index: int, page_id: int) -> int | None:
        """Hold a whole page out of turn, one that all who see it follow; return the page that it replaces, if any."""
        replaced = self._page.pop(index, None)
        self._page[index] = page_id
        self._placed.add(index)
        return replaced

    def replace(self, index: int, page_id: int) -> int:
        """Hold another page that says the same at an absolute index; return the one that was there."""
        replaced, self._page[index] = self._page[index], page_id
        return replaced

    def page(self, index: int) -> int:
        """Return the id of the page at an absolute index; it is held."""
        return self._page[index]

    def holds(self, index: int) -> bool:
        """Tell whether the page at an absolute index is held."""
        return index in self._page

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
        recalled = [index for index in self.recalled(token) if sinks <= index < recent]
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
        end = start + count
        out: list[int] = []
        while start < end:  # page by page: a prompt has many tokens
            first = self._page[start // PAGE_TOKENS] * PAGE_TOKENS + start % PAGE_TOKENS
            size = min(end - start, PAGE_TOKENS - start % PAGE_TOKENS)
            out += range(first, first + size)
            start += size
        return out

    def release_invisible(self, start: int | None = None) -> list[int]:
        """Give up and return the pages that no token from `start` (the next one) on can see.

        Call it once every reader is past `start`: a pack reads hidden states from the base's pages.
        """
        start = self.tokens if start is None else start
        assert start <= self.tokens, f"token {start} is not in place yet"
        leaving = self.invisible(start)
        self._recalls = [*[one for one in self._recalls if one[0] <= start][-1:], *self._after(start)]
        self._placed.difference_update(leaving)
        return [self._page.pop(index) for index in leaving]

    def invisible(self, start: int) -> list[int]:
        """Return the absolute indices of held pages that no token from `start` on can see."""
        sinks, recent = self.window.sink_tokens // PAGE_TOKENS, self.first_recent(start) // PAGE_TOKENS
        kept = {*range(sinks), *self.recalled(start)}.union(*(pages for _, pages in self._after(start)))
        return [index for index in self._page if index < recent and index not in kept]

    def _after(self, token: int) -> list[tuple[int, tuple[int, ...]]]:
        return [one for one in self._recalls if one[0] > token]

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
        dropped = [self._page.pop(index) for index in list(self._page) if index >= whole and index not in self._placed]
        self._reach = token // PAGE_TOKENS
        self.tokens = token
        return dropped

    def rewind(self, tokens: int) -> None:
        """Take the tokens from `tokens` on back; their pages stay attached and are written again.

        Only as far as nothing has been released since.
        """
        assert 0 <= tokens <= self.tokens, f"cannot rewind from {self.tokens} to {tokens}"
        self._recalls = [one for one in self._recalls if one[0] < max(1, tokens)]
        self.tokens = tokens

    def cut(self) -> list[int]:
        """Give up and return the pages that are attached for tokens to come."""
        end = -(-self.tokens // PAGE_TOKENS)
        self._reach = min(self._reach, end)
        return [self._page.pop(index) for index in list(self._page) if index >= end]

    def clear(self) -> list[int]:
        """Forget the sequence; return every page it held."""
        held = self.page_ids
        self.tokens, self._reach = 0, 0
        self._page.clear()
        self._recalls.clear()
        self._placed.clear()
        return held

    def stretches(self, start: int, count: int, max_rows: int) -> Iterator[tuple[int, int]]:
        """Cut `count` tokens from `start` on into (start, count) that a call may take: see `plan_call`."""
        end = start + count
        edges = [start, *(first for first, _ in self._recalls if start < first < end), end]
        for first, last in pairwise(edges):
            yield from split_on_blocks(first, last - first, self.window.block_tokens, max_rows)


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
    assert table.recalled(first) == table.recalled(last), f"tokens {first} to {last} do not see the same pages again"
    visible, before_last = table.visible(last)
    return Call(first, count, table.slots(first, count), before_last - (count - 1), visible)


def plan_recalled(table: PageTable, indices: Sequence[int], max_rows: int) -> Iterator[tuple[Call, list[int]]]:
    """Lay out pages placed in `table` to be ingested out of turn; yields calls of at most `max_rows` with their tokens.

    indices: of the pages of one stretch. They follow the sinks and those of the stretch that were there before, which
    `indices` leaves out: a page sees what stays, and the new ones before it.
    """
    sinks = range(min(table.window.sink_tokens, table.tokens) // PAGE_TOKENS)
    stretch = next(pages for _, pages in reversed(table.recalls) if set(indices) <= set(pages))
    before = [table.page(index) for index in (*sinks, *stretch) if index not in indices and table.holds(index)]
    listed = [*before, *(table.page(index) for index in indices)]
    tokens = [index * PAGE_TOKENS + offset for index in indices for offset in range(PAGE_TOKENS)]
    for first in range(0, len(tokens), max_rows):
        rows = tokens[first : first + max_rows]
        context = len(before) * PAGE_TOKENS + first
        slots = [table.page(token // PAGE_TOKENS) * PAGE_TOKENS + token % PAGE_TOKENS for token in rows]
        last = (context + len(rows) - 1) // PAGE_TOKENS
        yield Call(rows[0], len(rows), slots, context, listed[: last + 1]), rows


def split_on_blocks(start: int, count: int, block: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut `count` tokens from `start` on into (start, count) of at most `max_rows`, none across a block."""
    assert max_rows > 0
    end = start + count
    while start < end:
        rows = min(end - start, max_rows, block - start % block)
        yield start, rows
        start += rows
