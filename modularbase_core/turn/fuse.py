"""The packs' outputs to logits: blend, fusion layers, head. What share each pack has is told in `fusions`."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.device.executable import BoundProgram, Tensor
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.fusions import Shares
from modularbase_core.turn.rows import RowBuffers, Rows


@dataclass(frozen=True, slots=True)
class Part:
    """What one pack says of some rows: its output [T, E] and its weight in the route."""

    pack: PlacedPack
    output: Tensor
    weight: float


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

    def blend(self, parts: Sequence_[Part]) -> tuple[Tensor, NDArray[np.float32]]:
        """Return packs' outputs as one, [T, E], and the share of each [T, N]; a single one passes untouched."""
        outputs = [part.output for part in parts]
        shape, dtype = outputs[0].shape, outputs[0].dtype
        if len(parts) == 1:
            return outputs[0], np.ones((shape[0], 1), np.float32)
        gram = self._gram(outputs) if self.shares.compares else None
        shares = self.shares(np.array([part.weight for part in parts], np.float32), gram, shape[0]).astype(dtype)
        total = self._buffers.put("blend", np.zeros(shape, dtype))
        for number, output in enumerate(outputs):
            total = self._mix(total, output, self._buffers.put(f"weight.{number}", shares[:, number]))
        return total, shares

    def _gram(self, outputs: Sequence_[Tensor]) -> NDArray[np.float32]:
        """Return the inner products [T, N, N] of packs' outputs, divided by their width."""
        count = len(outputs)
        gram = np.empty((outputs[0].shape[0], count, count), np.float32)
        for one in range(count):
            for other in range(one, count):
                gram[:, one, other] = gram[:, other, one] = self._compare(outputs[one], outputs[other]).numpy()
        return gram

    def logits(self, parts: Sequence_[Part], rows: Rows, wanted: Sequence_[int]) -> NDArray[np.float32]:
        """Return logits [len(wanted), V] of those rows of the packs' blend; all rows enter the fusion pages.

        A pack that adds to the head does so by its share of each row.
        """
        mixed, shares = self.blend(parts)
        chosen = self._buffers.put("rows", np.asarray(wanted, np.int32))
        out = self._fuse(mixed, chosen, self._hot.fusion, *rows.inputs)
        for number, part in enumerate(parts):
            if part.pack.adds_to_head:
                share = self._buffers.put(f"share.{number}", shares[list(wanted), number].astype(out.dtype))
                out = part.pack.add_to_head(part.output, chosen, out, share)
        return out.numpy().astype(np.float32, copy=False)
