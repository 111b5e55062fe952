"""Memory of a device that programs read and write, and how values come in and out of it.

On the CPU numpy and TVM see the same bytes. On a GPU what is written is on its way when `write` returns, in order with
all that is run later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.cudart import DEVICE_TO_DEVICE, HOST_TO_DEVICE, Runtime

Array = NDArray[Any]  # Any: tensors are of several dtypes, told at run time


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `handle` is TVM's, `host` numpy's view (CPU only), `runtime` what copies without waiting (GPU)."""

    shape: tuple[int, ...]
    dtype: str
    handle: Any  # tvm.runtime.Tensor, which is not imported here and has no types
    host: Array | None
    runtime: Runtime | None = field(default=None, compare=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def address(self) -> int:
        """Where it begins, on its device."""
        return int(self.handle.data_ptr())

    def numpy(self) -> Array:
        """Return a view on the CPU, a copy from a GPU."""
        if self.host is not None:
            return self.host
        copied: Array = self.handle.numpy()
        return copied

    def write(self, values: Array) -> None:
        """Copy `values`, of the same shape, into the tensor; they may be changed afterwards."""
        if self.host is not None:
            self.host[...] = values
            return
        values = np.ascontiguousarray(values, dtype=self.dtype)
        if self.runtime is None:
            self.handle.copyfrom(values)
        elif values.nbytes:
            assert values.shape == self.shape, f"{values.shape} written to {self.shape}"
            # pageable memory is read before this returns, but the device is not waited for, as TVM's copy does
            self.runtime.copy(self.address, values.ctypes.data, values.nbytes, HOST_TO_DEVICE, 0)

    def take(self, other: Tensor, stream: int = 0) -> None:
        """Copy another tensor of the same GPU, shape and dtype."""
        assert self.runtime is not None
        self.runtime.copy(self.address, other.address, self.size_bytes, DEVICE_TO_DEVICE, stream)

    def read_rows(self, rows: Sequence[int]) -> Array:
        """Copy some of the first axis to the CPU: [len(rows), ...]."""
        if self.host is not None:
            copied: Array = self.host[list(rows)]
            return copied
        return np.concatenate([np.zeros((0, *self.shape[1:]), self.dtype), *(self._row(row).numpy() for row in rows)])

    def write_row(self, row: int, values: Array) -> None:
        """Copy `values` [...] into one of the first axis."""
        if self.host is not None:
            self.host[row] = values
        else:
            self._row(row).copyfrom(np.ascontiguousarray(values[None], dtype=self.dtype))

    def copy_row(self, source: int, target: int) -> None:
        """Copy one of the first axis over another; on a GPU nothing passes through the CPU."""
        if self.host is not None:
            self.host[target] = self.host[source]
        else:
            self._row(target).copyfrom(self._row(source))

    def _row(self, row: int) -> Any:
        shape = (1, *self.shape[1:])
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        return self.handle._create_view(shape, self.dtype, relative_byte_offset=row * size_bytes)
