"""The rows of a call on the device: index arrays and small inputs, in buffers that are used again.

A decode step must not allocate; a buffer of each shape is kept and written over. Writing is ordered with the
programs that read it, so one buffer a name is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from modularbase_core.context.batch import batch_arrays
from modularbase_core.context.page import Call
from modularbase_core.device.executable import Device, Tensor

ROW_BYTES: Final = 8 << 20
"""What these buffers may take; the budget sets it aside."""

LIST_MULTIPLE: Final = 16
"""Page lists are padded to a multiple of it: few widths, so few buffers. What pads is never read."""


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
    """Device buffers by name and shape, at most `ROW_BYTES` in all: the least recently used go first."""

    def __init__(self, device: Device, list_multiple: int = LIST_MULTIPLE) -> None:
        self._device, self._list_multiple = device, list_multiple
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._bytes = 0

    def put(self, name: str, values: NDArray[Any]) -> Tensor:
        """Copy `values` into the buffer of that name and shape."""
        key = (name, values.shape)
        tensor = self._buffers.pop(key, None)
        if tensor is None:
            self._bytes += values.nbytes
            while self._bytes > ROW_BYTES and self._buffers:
                oldest = next(iter(self._buffers))
                removed = self._buffers.pop(oldest)
                self._bytes -= removed.size_bytes
                self._device.forget([removed])
            tensor = self._device.tensor(values.shape, str(values.dtype))
        self._buffers[key] = tensor  # at the end: the most recently used
        tensor.write(values)
        return tensor

    def rows(self, owner: str, calls: Sequence[Call]) -> Rows:
        """Put the index arrays of `calls`; `owner` tells apart what is alive at the same time."""
        arrays = batch_arrays(calls, width_multiple=self._list_multiple)
        return Rows(
            self.put(owner + ".slots", arrays.slots),
            self.put(owner + ".starts", arrays.starts),
            self.put(owner + ".lengths", arrays.lengths),
            self.put(owner + ".context", arrays.context),
            self.put(owner + ".visible", arrays.visible),
        )
