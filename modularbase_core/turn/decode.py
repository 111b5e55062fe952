"""The walk through the stages: prefill a turn for its route, then step sequences token by token, many in a call.

A token counts in tables and tiers once it is accepted; rows computed beyond the last such token leave no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequence_

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.context.page import Call, plan_call
from modularbase_core.device.executable import Tensor
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.fuse import Fusion, Part
from modularbase_core.turn.remember import Remembering
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.sharing import Sharing
from modularbase_core.turn.understand import Understanding

Placed = Mapping[str, PlacedPack]
"""The packs that are held, by id."""


class Decoding:
    """Runs held packs and fusion over understood tokens. max_rows: rows of a prefill call."""

    def __init__(
        self,
        understanding: Understanding,
        fusion: Fusion,
        remembering: Remembering,
        sharing: Sharing,
        hot: HotPages,
        buffers: RowBuffers,
        max_rows: int,
    ) -> None:
        self.remembering, self.sharing = remembering, sharing
        self._understanding, self._fusion = understanding, fusion
        self._hot, self._buffers, self._max_rows = hot, buffers, max_rows

    def prefill(self, sequence: Sequence, placed: Placed) -> NDArray[np.float32]:
        """Take what is understood but not fused through the route's packs; return the last token's logits [V]."""
        self.sharing.begin_turn(sequence)
        table, first = sequence.table, sequence.fused
        for pack_id in sequence.route.ids:
            placed[pack_id].join(sequence, first, self._understanding, self._buffers, self._max_rows)
        logits = np.empty((0, 0), np.float32)
        for start, count in table.stretches(first, table.tokens - first, self._max_rows):
            for pack_id in sequence.route.ids:
                placed[pack_id].remember(sequence, start, self._understanding, self._buffers, self._max_rows)
            hidden = self._understanding.recall(sequence, start, count)
            parts = self._parts([sequence], placed, hidden, self._plan([sequence], placed, [count]))
            rows = self._buffers.rows("fusion", [plan_call(table, count, start)])
            logits = self._fusion.logits(parts, rows, [count - 1])
            for pack_id in sequence.route.ids:
                placed[pack_id].advance(sequence, count)
            sequence.fused = start + count
        self._end(sequence, 1)
        last: NDArray[np.float32] = logits[0]
        return last

    def step(self, sequences: Sequence_[Sequence], token_ids: Sequence_[int], placed: Placed) -> NDArray[np.float32]:
        """Add one token to each sequence and return the logits [B, V] of what follows."""
        logits = self.look_ahead(sequences, [[token_id] for token_id in token_ids], placed)
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            self.accept(sequence, token_id, placed)
        return logits

    def look_ahead(
        self, sequences: Sequence_[Sequence], token_ids: Sequence_[Sequence_[int]], placed: Placed
    ) -> NDArray[np.float32]:
        """Return the logits [T, V] that follow each token of stretches which may continue the sequences.

        None of them counts before it is given to `accept`, from the first of a stretch on; what is not is written over.
        A stretch is as long as `room` says, or a single token. Sequences of the same route share calls; a row's bits
        do not depend on who else is in the call.
        """
        groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for number, sequence in enumerate(sequences):
            key = tuple((pack.id, pack.weight) for pack in sequence.route.packs)
            groups.setdefault(key, []).append(number)
        counts = [len(stretch) for stretch in token_ids]
        # every page is reserved before anything is computed, so that what does not fit changes nothing
        for sequence, count in zip(sequences, counts, strict=True):
            self._begin(sequence, placed, count)
        calls = [plan_call(sequence.table, count) for sequence, count in zip(sequences, counts, strict=True)]
        planned = [
            self._plan([sequences[number] for number in members], placed, [counts[number] for number in members])
            for members in groups.values()
        ]
        rows = self._buffers.rows("base", calls)
        hidden = self._understanding.step([one for stretch in token_ids for one in stretch], rows)
        if len(groups) == 1:
            return self._fusion.logits(self._parts(sequences, placed, hidden, planned[0]), rows, range(sum(counts)))
        ends = np.cumsum(counts)
        out: NDArray[np.float32] | None = None
        for members, pack_calls in zip(groups.values(), planned, strict=True):
            chosen = [sequences[number] for number in members]
            rows = self._buffers.rows("group", [calls[number] for number in members])
            hidden = self._understanding.recall_slots([slot for number in members for slot in calls[number].slots])
            places = [row for number in members for row in range(ends[number] - counts[number], ends[number])]
            parts = self._parts(chosen, placed, hidden, pack_calls)
            logits = self._fusion.logits(parts, rows, range(len(places)))
            out = np.empty((sum(counts), logits.shape[1]), np.float32) if out is None else out
            out[places] = logits
        assert out is not None
        return out

    def accept(self, sequence: Sequence, token_id: int, placed: Placed) -> None:
        """Let the next token count, whose row the last look ahead computed after those that were accepted of it."""
        sequence.advance([token_id])
        for pack_id in sequence.route.ids:
            placed[pack_id].advance(sequence, 1)
        sequence.fused += 1
        self._end(sequence, sequence.table.window.block_tokens)

    def room(self, sequence: Sequence, placed: Placed, count: int) -> int:
        """Return how many of the next `count` tokens a stretch may have: in its block, and in pages that are free.

        A block's first token goes alone: it is where packs take in what is seen again.
        """
        table, block = sequence.table, sequence.table.window.block_tokens
        place = table.tokens % block
        count = min(count, block - place) if place else 1
        packs = (placed[pack_id] for pack_id in sequence.route.ids)
        fits = self._hot.pool.fits(table, count) and all(pack.fits(sequence, count) for pack in packs)
        return count if fits else 1

    def _begin(self, sequence: Sequence, placed: Placed, count: int) -> None:
        """Reserve a sequence's next tokens; where a block begins, its packs take in what is seen again."""
        if sequence.tiers is not None and sequence.table.tokens % sequence.table.window.block_tokens == 0:
            for pack_id in sequence.route.ids:
                pack = placed[pack_id]
                pack.remember(sequence, sequence.table.tokens, self._understanding, self._buffers, self._max_rows)
        self._hot.pool.extend(sequence.table, count)

    def _end(self, sequence: Sequence, every: int) -> None:
        """Give up what is out of sight every so many tokens; what the next block sees again is chosen before.

        What leaves is handed over first, so that it is encoded while the search leaves a core idle.
        """
        tokens, block = sequence.table.tokens, sequence.table.window.block_tokens
        if tokens % every == 0:
            self.sharing.keep(sequence)
        if sequence.tiers is not None and (tokens % every == 0 or tokens % PAGE_TOKENS == 0):
            sequence.tiers.settle(sequence.table, sequence.fused)
        if tokens % block == 0:
            self.remembering.end_block(sequence)
        elif tokens % every == 0:
            self._hot.pool.trim(sequence.table, sequence.fused)

    def take_faults(self) -> list[str]:
        """Return what went wrong in the fusion since this was last asked, a sentence each."""
        return self._fusion.shares.take_faults()

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's hot pages back."""
        self._hot.pool.release(sequence.table)
        sequence.reset()

    def _plan(self, sequences: Sequence_[Sequence], placed: Placed, counts: Sequence_[int]) -> list[list[Call]]:
        """Reserve the pages of so many more tokens in every pack of the route; calls by pack, then by sequence."""
        packs = [placed[routed.id] for routed in sequences[0].route.packs]
        return [
            [pack.plan(one, one.fused, count) for one, count in zip(sequences, counts, strict=True)] for pack in packs
        ]

    def _parts(
        self, sequences: Sequence_[Sequence], placed: Placed, hidden: Tensor, calls: Sequence_[Sequence_[Call]]
    ) -> list[Part]:
        # pack after pack: on two cores one launch for two packs could save 2 to 5 % of a step (tests/bench/fusion.py)
        return [
            Part(placed[one.id], placed[one.id].run(hidden, of_pack, self._buffers), one.weight)
            for one, of_pack in zip(sequences[0].route.packs, calls, strict=True)
        ]
