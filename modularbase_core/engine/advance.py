"""One token more for all that run: together in a call or, for one that runs alone, perhaps from what is ahead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modularbase_core.engine.request import Running
from modularbase_core.turn.decode import Decoding


def advance(decoding: Decoding, batch: Sequence[Running]) -> Sequence[NDArray[np.float32]]:
    """Let each one's last token count, and return the logits [V] that follow it.

    Of several nothing is drafted: rows that are sure to be told fill the call.
    """
    if len(batch) == 1:
        (one,) = batch
        left = one.request.sampling.max_tokens - one.generated
        return [one.ahead.step(decoding, one.request.sequence, one.token_id, one.placed, left)]
    for one in batch:
        one.ahead.clear()
    placed = {pack_id: pack for one in batch for pack_id, pack in one.placed.items()}
    return list(decoding.step([one.request.sequence for one in batch], [one.token_id for one in batch], placed))
