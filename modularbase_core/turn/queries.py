"""Messages to unit queries, which packs' keys are compared with: the router's program over hidden states."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequence_

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.executable import BoundProgram
from modularbase_core.sdk.architecture import routed_part
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.understand import Understanding


class Queries:
    """The router's program over what is understood. encode(text): its tokens as the first message, and its place."""

    def __init__(
        self,
        route: BoundProgram,
        understanding: Understanding,
        buffers: RowBuffers,
        encode: Callable[[str], tuple[Sequence_[int], tuple[int, int]]],
        fresh: Callable[[], Sequence],
    ) -> None:
        self._route, self._understanding, self._buffers = route, understanding, buffers
        self._encode, self._fresh = encode, fresh

    def of(self, sequence: Sequence, start: int, token_ids: Sequence_[int]) -> NDArray[np.float32]:
        """Return the unit query [key_size] of the message `token_ids`, in `sequence` from `start`, understood."""
        slots = sequence.table.slots(start, len(token_ids))
        hidden = self._understanding.recall_slots(routed_part(slots))
        tokens = self._buffers.put("route.tokens", np.asarray(routed_part(token_ids), np.int32))
        first = self._buffers.put("route.starts", np.zeros(1, np.int32))
        count = self._buffers.put("route.lengths", np.array([hidden.shape[0]], np.int32))
        query: NDArray[np.float32] = self._route(hidden, tokens, first, count).numpy()[0].astype(np.float32)
        return query

    def of_texts(self, texts: Sequence_[str]) -> NDArray[np.float32]:
        """Return the unit queries [n, key_size] of messages, each as the first of a conversation of its own.

        Raises BudgetError when a message does not fit the hot pages.
        """
        queries = []
        for text in texts:
            sequence = self._fresh()
            try:
                token_ids, (start, end) = self._encode(text)
                self._understanding.ingest(sequence, token_ids[:end])
                queries.append(self.of(sequence, start, token_ids[start:end]))
            finally:
                self._understanding.release(sequence)
        return np.array(queries, np.float32)
