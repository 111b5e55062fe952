"""The packs' outputs to logits: blend, fusion layers, head."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.device.executable import BoundProgram, Tensor
from modularbase_core.turn.rows import RowBuffers, Rows


class Fusion:
    """The programs `mix` and `fuse` over the hot pages."""

    def __init__(self, mix: BoundProgram, fuse: BoundProgram, hot: HotPages, buffers: RowBuffers) -> None:
        self._mix, self._fuse, self._hot, self._buffers = mix, fuse, hot, buffers

    def blend(self, parts: Sequence_[tuple[Tensor, float]]) -> Tensor:
        """Return the weighted mean [T, E] of packs' outputs; a single one passes untouched, to the bit."""
        if len(parts) == 1:
            return parts[0][0]
        shape, dtype = parts[0][0].shape, parts[0][0].dtype
        total = self._buffers.put("blend", np.zeros(shape, dtype))
        for number, (part, weight) in enumerate(parts):
            total = self._mix(total, part, self._buffers.put(f"weight.{number}", np.array([weight], dtype)))
        return total

    def logits(self, mixed: Tensor, rows: Rows, wanted: Sequence_[int]) -> NDArray[np.float32]:
        """Return logits [len(wanted), V] of those rows of the blended output; all rows enter the fusion pages."""
        chosen = self._buffers.put("rows", np.asarray(wanted, np.int32))
        out = self._fuse(mixed, chosen, self._hot.fusion, *rows.inputs).numpy()
        return out.astype(np.float32, copy=False)
