"""Tokens to hidden states: the understanding layers, and hidden states brought back from their pages."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequence_

import numpy as np

from modularbase_core.context.hot import HotPages
from modularbase_core.context.page import plan_call, split_on_blocks
from modularbase_core.device.executable import BoundProgram, Tensor
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.turn.rows import RowBuffers, Rows
from modularbase_core.turn.sequence import Sequence


class Understanding:
    """The programs `understand` and `recall_hidden` over the hot pages."""

    def __init__(
        self, understand: BoundProgram, recall: BoundProgram, hot: HotPages, buffers: RowBuffers, max_rows: int
    ) -> None:
        self._understand, self._recall = understand, recall
        self.hot, self._buffers, self._max_rows = hot, buffers, max_rows

    def ingest(self, sequence: Sequence, token_ids: Sequence_[int], early: Callable[[], bool] | None = None) -> None:
        """Add tokens to a sequence: all of them or, on BudgetError, none.

        Those of a sequence with tiers end with a block once anything is cold; see `Sequence.stretch`.
        early: called in a long prompt between two stretches, until it returns True.
        """
        table = sequence.table
        self.hot.pool.extend(table, len(token_ids))
        first = table.tokens
        for start, count in split_on_blocks(first, len(token_ids), table.window.block_tokens, self._max_rows):
            part = token_ids[start - first : start - first + count]
            self.step(part, self._buffers.rows("base", [plan_call(table, count)]))
            sequence.advance(part)
            if early is not None and start + count < first + len(token_ids) and early():
                early = None

    def step(self, token_ids: Sequence_[int], rows: Rows) -> Tensor:
        """Return hidden states [T, E] of one token or stretch per row, also written to their pages."""
        tokens = self._buffers.put("tokens", np.asarray(token_ids, np.int32))
        return self._understand(tokens, self.hot.hidden, self.hot.understanding, *rows.inputs)

    def release(self, sequence: Sequence) -> None:
        """Give the hot pages of a sequence back that was understood and no more."""
        self.hot.pool.release(sequence.table)

    def recall(self, sequence: Sequence, start: int, count: int) -> Tensor:
        """Return the hidden states [count, E] of tokens from `start` on, from their pages."""
        return self.recall_slots(sequence.table.slots(start, count))

    def recall_tokens(self, sequence: Sequence, tokens: Sequence_[int]) -> Tensor:
        """Return the hidden states [T, E] of tokens, whose pages are held, by their absolute indices."""
        table = sequence.table
        return self.recall_slots([table.page(one // PAGE_TOKENS) * PAGE_TOKENS + one % PAGE_TOKENS for one in tokens])

    def recall_slots(self, slots: Sequence_[int]) -> Tensor:
        """Return the hidden states [T, E] at `slots`."""
        return self._recall(self.hot.hidden, self._buffers.put("recall", np.asarray(slots, np.int32)))
