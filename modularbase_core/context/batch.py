"""The calls of several sequences as the index arrays of one kernel call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.page import Call


@dataclass(frozen=True, slots=True)
class BatchArrays:
    """Int32 inputs of a paged program, sequence by sequence (see `graph.ops.attend`).

    slots: [T]; starts (first row), lengths (rows), context (visible tokens before): [B]; visible: [B, M] page
    ids, M the longest list, shorter ones padded with 0, which is never read.
    """

    slots: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    context: NDArray[np.int32]
    visible: NDArray[np.int32]


def batch_arrays(calls: Sequence[Call], *, width_multiple: int = 1) -> BatchArrays:
    """Lay the rows of `calls` one after the other; `visible` is as wide as the longest list, rounded up."""
    lengths = np.array([call.count for call in calls], np.int32)
    longest = max(len(call.visible) for call in calls)
    visible = np.zeros((len(calls), -(-longest // width_multiple) * width_multiple), np.int32)
    for row, call in zip(visible, calls, strict=True):
        row[: len(call.visible)] = call.visible
    return BatchArrays(
        slots=np.concatenate([np.asarray(call.slots, np.int32) for call in calls]),
        starts=np.cumsum(lengths, dtype=np.int32) - lengths,
        lengths=lengths,
        context=np.array([call.context for call in calls], np.int32),
        visible=visible,
    )
