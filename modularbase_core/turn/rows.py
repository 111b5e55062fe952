"""The rows of a call on the device: index arrays and small inputs, in buffers that are used again.

A decode step must not allocate; a buffer of each shape is kept and written over. Writing is ordered with the
programs that read it, so one buffer a name is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.batch import batch_arrays
from modularbase_core.context.page import Call
from modularbase_core.device.executable import Device, Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The index inputs that every paged program takes, in its order (see `graph.programs`)."""

    slots: Tensor
    starts: Tensor
    lengths: Tensor
    context: Tensor
    visible: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All five, in order."""
        return self.slots, self.starts, self.lengths, self.context, self.visible


class RowBuffers:
    """Device buffers by name and shape. At most `kept` shapes: the oldest goes first."""

    def __init__(self, device: Device, *, kept: int = 256) -> None:
        self._device = device
        self._kept = kept
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def put(self, name: str, values: NDArray[Any]) -> Tensor:
        """Copy `values` into the buffer of that name and shape."""
        tensor = self._buffers.get((name, values.shape))
        if tensor is None:
            if len(self._buffers) >= self._kept:
                del self._buffers[next(iter(self._buffers))]
            tensor = self._buffers[name, values.shape] = self._device.tensor(values.shape, str(values.dtype))
        tensor.write(values)
        return tensor

    def rows(self, owner: str, calls: Sequence[Call]) -> Rows:
        """Put the index arrays of `calls`; `owner` tells apart what is alive at the same time."""
        arrays = batch_arrays(calls)
        visible = arrays.visible
        width = -(-visible.shape[1] // 16) * 16  # few widths, so few buffers; what pads is never read
        if width != visible.shape[1]:
            visible = np.pad(visible, ((0, 0), (0, width - visible.shape[1])))
        return Rows(
            self.put(owner + ".slots", arrays.slots),
            self.put(owner + ".starts", arrays.starts),
            self.put(owner + ".lengths", arrays.lengths),
            self.put(owner + ".context", arrays.context),
            self.put(owner + ".visible", visible),
        )
