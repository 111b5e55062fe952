"""What comes back from the tiers, and when: where a block begins, and where a question ends.

Decides with which queries is searched; which pages win and how they come is the tiers' part. All of it follows from
the tokens and where turns end, so chunked prefill, whole prefill and decode bring the same pages back.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.context.page import plan_call
from modularbase_core.context.tiers import PROBE_TOKENS
from modularbase_core.device.executable import BoundProgram
from modularbase_core.sdk.architecture import BaseArchitecture
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.sequence import Sequence

ROW_STEP: Final = 2
"""Of the last tokens every other one searches; all of them took twice as long and found no better pages."""


class Remembering:
    """The program `probe` over the hot pages of understanding, and the searches that its queries make."""

    def __init__(
        self, probe: BoundProgram, hot: HotPages, buffers: RowBuffers, architecture: BaseArchitecture, max_rows: int
    ) -> None:
        self._probe, self._hot, self._buffers, self._max_rows = probe, hot, buffers, max_rows
        blocks, window = architecture.blocks, architecture.window
        self._shape = (architecture.understanding_layers, blocks.heads, blocks.head_size)
        # a query stands on average in the middle of its block, a recalled page in the middle of theirs: so far apart
        distance = window.trained_tokens - window.block_tokens // 2 - window.sink_tokens - window.recall_tokens // 2
        half = np.arange(0, blocks.head_size, 2) / blocks.head_size
        angle = distance * blocks.rope_theta**-half
        self._cos, self._sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def end_block(self, sequence: Sequence) -> None:
        """Where a block ended, give up what is out of sight and choose what the next one sees again.

        All of the sequence is fused. What comes back comes from the cold store, also where it has only just left:
        a page is the same however the tokens were cut into calls.
        """
        token, tiers, table = sequence.table.tokens, sequence.tiers, sequence.table
        if tiers is None:
            self._hot.pool.trim(table, sequence.fused)
            return
        assert sequence.fused == token
        tiers.index(table, token)
        queries = self._queries(sequence, token) if tiers.has_cold else None
        self._hot.pool.trim(table)
        if queries is not None:
            tiers.recall(table, token, queries, question=False)

    def answer(self, sequence: Sequence, first: int, question: Sequence_[int]) -> int:
        """Search with a question that was just understood, and have its end read again with what was found.

        first: where the turn begins. question: its words. Returns from which token on the caller reads again; all of
        it is taken back. Where nothing is cold that is where the sequence ends.
        """
        table, tiers = sequence.table, sequence.tiers
        end = table.tokens
        if tiers is None or not tiers.has_cold:
            return end
        tiers.question = tuple(question)
        block = table.window.block_tokens
        start = max(first, (end - 1) // block * block)
        queries = self._queries(sequence, end)
        sequence.rewind(start)
        tiers.recall(table, start, queries, question=True)
        return start

    def _queries(self, sequence: Sequence, end: int) -> NDArray[np.float32]:
        """Return the queries that search before `end`: of some of the last tokens of its block."""
        block = sequence.table.window.block_tokens
        return self.queries(sequence, max(end - PROBE_TOKENS, (end - 1) // block * block), end)[::-ROW_STEP]

    def queries(self, sequence: Sequence, first: int, end: int) -> NDArray[np.float32]:
        """Return the queries [R, L, H, D] of the tokens first .. end, turned to where recalled pages lie.

        The tokens are of one block and among the last that the tiers heard; fewer rows come where they are not.
        """
        table, tiers = sequence.table, sequence.tiers
        assert tiers is not None
        ids = tiers.heard.last(end, end - first)
        parts = []
        for start, count in table.stretches(end - len(ids), len(ids), self._max_rows):
            rows = self._buffers.rows("base", [plan_call(table, count, start)])
            at = start - (end - len(ids))
            tokens = self._buffers.put("tokens", np.asarray(ids[at : at + count], np.int32))
            parts.append(self._probe(tokens, self._hot.understanding, *rows.inputs).numpy().astype(np.float32))
        queries = np.concatenate(parts).reshape(len(ids), *self._shape)
        half = self._shape[2] // 2
        low, high = queries[..., :half], queries[..., half:]
        turned = [low * self._cos - high * self._sin, high * self._cos + low * self._sin]
        return np.concatenate(turned, -1)
