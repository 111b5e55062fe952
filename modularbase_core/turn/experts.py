"""The chosen packs: hidden states in, each pack's output out, and what each remembers of a sequence.

A pack's pages die with its place in a slot. Whoever comes (back) later reads the hidden states that it has
not seen, as far as they are visible, and never text again.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_

from modularbase_core.context.page import Call, PageTable, plan_call, plan_recalled
from modularbase_core.context.pool import PagePool
from modularbase_core.device.executable import BoundProgram, Tensor
from modularbase_core.device.layouts import PlacedWeights
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.understand import Understanding


class PlacedPack:
    """A pack in its slot: its program with its weights, its pages, and a page table for each sequence."""

    def __init__(self, pack_id: str, weights: PlacedWeights, pages: Tensor, window: Window) -> None:
        self.pack_id, self.weights, self.pages = pack_id, weights, pages
        self._run: BoundProgram | None = weights.bind("run")
        programs = weights.executable.meta.programs
        self._delta: BoundProgram | None = weights.bind("delta") if "delta" in programs else None
        self._window = window
        self._pool = PagePool(f"pack {pack_id!r}", pages.shape[0])
        self._tables: dict[Sequence, PageTable] = {}

    def table(self, sequence: Sequence) -> PageTable:
        """Return this pack's page table of a sequence, new and empty if it never met it."""
        if sequence not in self._tables:
            self._tables[sequence] = PageTable(self._window)
        return self._tables[sequence]

    def plan(self, sequence: Sequence, start: int, count: int) -> Call:
        """Make room for `count` tokens from `start`, the pack's watermark, and lay them out."""
        table = self.table(sequence)
        assert table.tokens == start, f"pack {self.pack_id!r} is at {table.tokens}, not at {start}"
        if count > 1 or start % self._window.block_tokens == 0:  # elsewhere nothing falls out of sight
            self._pool.trim(table)
        self._pool.extend(table, count)
        return plan_call(table, count)

    def run(self, hidden: Tensor, calls: Sequence_[Call], buffers: RowBuffers) -> Tensor:
        """Return this pack's output [T, E] for planned rows; its watermarks stay until `advance`."""
        assert self._run is not None, f"pack {self.pack_id!r} has left its slot"
        return self._run(hidden, self.pages, *buffers.rows("pack", calls).inputs)

    def advance(self, sequence: Sequence, count: int) -> None:
        """Move the watermark of a sequence by `count` tokens, after the call that wrote them."""
        self.table(sequence).advance(count)

    def fits(self, sequence: Sequence, count: int) -> bool:
        """Tell whether pages are free for `count` more tokens of a sequence."""
        return self._pool.fits(self.table(sequence), count)

    @property
    def adds_to_head(self) -> bool:
        """Whether this pack adds something of its own to the logits."""
        return self._delta is not None

    def add_to_head(self, output: Tensor, rows: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """Return `logits` [R, V] with this pack's own at `rows` [R] of its output [T, E], by its `weight` [R]."""
        assert self._delta is not None, f"pack {self.pack_id!r} adds nothing to the head, or has left its slot"
        return self._delta(output, rows, logits, weight)

    def join(
        self, sequence: Sequence, start: int, understanding: Understanding, buffers: RowBuffers, max_rows: int
    ) -> None:
        """Catch up with a sequence, so that the watermark stands at `start`: sinks, recalled pages, recent tokens."""
        table = self.table(sequence)
        spans = [span for behind in table.behind(start) for span in sequence.table.held(*behind)]
        for first, end in spans:
            self._pool.skip(table, first)
            for begin, count in table.stretches(first, end - first, max_rows):
                self.remember(sequence, begin, understanding, buffers, max_rows)
                call = self.plan(sequence, begin, count)
                self.run(understanding.recall(sequence, begin, count), [call], buffers)
                self.advance(sequence, count)
        self._pool.skip(table, max(start, table.tokens))  # where the last page before it is one of the gaps

    def remember(
        self, sequence: Sequence, token: int, understanding: Understanding, buffers: RowBuffers, max_rows: int
    ) -> None:
        """Take the pages in that `token` sees again and that this pack has not, from their hidden states."""
        table = self.table(sequence)
        table.follow(sequence.table)
        lacking = table.lacking(table.recalled(token))
        if not lacking:
            return
        self._pool.trim(table, min(table.tokens, token))
        for index, page_id in zip(lacking, self._pool.allocate(len(lacking)), strict=True):
            replaced = table.place(index, page_id)
            self._pool.free([] if replaced is None else [replaced])
        for call, tokens in plan_recalled(table, lacking, max_rows):
            self.run(understanding.recall_tokens(sequence, tokens), [call], buffers)

    def vacate(self) -> None:
        """Let go of the device memory, as another pack takes the slot."""
        self._run = self._delta = None
        self._tables.clear()
        del self.weights, self.pages

    def rewind(self, sequence: Sequence) -> None:
        """Forget a sequence that was taken back behind this pack's watermark; it is joined again from h."""
        table = self._tables.get(sequence)
        if table is not None and table.tokens > sequence.fused:
            self.forget(sequence)

    def make_room(self, active: Sequence_[Sequence]) -> None:
        """See that one more of the `active` sequences finds pages: idle ones are forgotten where they are short."""
        if self._pool.free_count <= self._window.trained_tokens // PAGE_TOKENS:
            for sequence in [one for one in self._tables if one not in active]:
                self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Give a sequence's pages back."""
        table = self._tables.pop(sequence, None)
        if table is not None:
            self._pool.release(table)
