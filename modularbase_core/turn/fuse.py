"""The packs' outputs to logits: blend, fusion layers, head. What share each pack has is told in `fusions`."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.device.executable import BoundProgram, Tensor
from modularbase_core.turn.fusions import Shares
from modularbase_core.turn.rows import RowBuffers, Rows


class Fusion:
    """The programs `mix`, `compare` and `fuse` over the hot pages. shares: how several packs are blended."""

    def __init__(
        self,
        mix: BoundProgram,
        compare: BoundProgram,
        fuse: BoundProgram,
        hot: HotPages,
        buffers: RowBuffers,
        shares: Shares,
    ) -> None:
        self._mix, self._compare, self._fuse = mix, compare, fuse
        self._hot, self._buffers, self.shares = hot, buffers, shares

    def blend(self, parts: Sequence_[tuple[Tensor, float]]) -> Tensor:
        """Return packs' outputs as one, [T, E], by their weights; a single one passes untouched, to the bit."""
        if len(parts) == 1:
            return parts[0][0]
        outputs = [output for output, _ in parts]
        shape, dtype = outputs[0].shape, outputs[0].dtype
        gram = self._gram(outputs) if self.shares.compares else None
        shares = self.shares(np.array([weight for _, weight in parts], np.float32), gram, shape[0]).astype(dtype)
        total = self._buffers.put("blend", np.zeros(shape, dtype))
        for number, output in enumerate(outputs):
            total = self._mix(total, output, self._buffers.put(f"weight.{number}", shares[:, number]))
        return total

    def _gram(self, outputs: Sequence_[Tensor]) -> NDArray[np.float32]:
        """Return the inner products [T, N, N] of packs' outputs, divided by their width."""
        count = len(outputs)
        gram = np.empty((outputs[0].shape[0], count, count), np.float32)
        for one in range(count):
            for other in range(one, count):
                gram[:, one, other] = gram[:, other, one] = self._compare(outputs[one], outputs[other]).numpy()
        return gram

    def logits(self, mixed: Tensor, rows: Rows, wanted: Sequence_[int]) -> NDArray[np.float32]:
        """Return logits [len(wanted), V] of those rows of the blended output; all rows enter the fusion pages."""
        chosen = self._buffers.put("rows", np.asarray(wanted, np.int32))
        out = self._fuse(mixed, chosen, self._hot.fusion, *rows.inputs).numpy()
        return out.astype(np.float32, copy=False)
