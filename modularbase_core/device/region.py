"""Memory of a device from which tensors are carved, again and again: what a slot is made of.

Decides where tensors lie in it; what they mean is `layouts`'. On the CPU a region is one allocation for good and
filling it one copy; on a GPU, where programs take no tensor inside another, carving another way allocates anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.executable import ALIGNMENT, Device, Tensor

Form = tuple[tuple[int, ...], str]
"""Shape and dtype of a tensor."""

Bytes = NDArray[np.uint8]


def form_bytes(form: Form) -> int:
    """Return the bytes that a tensor takes in a region, up to where the next one begins."""
    return -(-_size_bytes(form) // ALIGNMENT) * ALIGNMENT


def _size_bytes(form: Form) -> int:
    return math.prod(form[0]) * np.dtype(form[1]).itemsize


class Region:
    """`size_bytes` of a device. On the CPU, what is never written is never resident."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self.device, self.size_bytes = device, size_bytes
        self._host = device.host_bytes(size_bytes) if device.name == "cpu" else None
        self._forms: tuple[Form, ...] = ()
        self._tensors: tuple[Tensor, ...] = ()

    def carve(self, forms: Sequence[Form]) -> tuple[Tensor, ...]:
        """Return tensors of these forms, one behind the other; those carved before are not to be used any more.

        Their bytes are what was there before, until they are written.
        """
        assert sum(map(form_bytes, forms)) <= self.size_bytes, "more is carved from a region than it holds"
        if tuple(forms) != self._forms:
            self.device.forget(self._tensors)
            self._forms = self._tensors = ()  # a GPU's memory is given back before more is taken
            self._tensors, self._forms = tuple(self._made(forms)), tuple(forms)
        return self._tensors

    def fill(self, values: Bytes) -> None:
        """Copy `values`, laid out as the tensors are carved, to the region's beginning: no conversion."""
        if self._host is not None:
            # one thread: glibc streams large copies past the caches, and two cores gain nothing on one memory bus
            self._host[: values.size] = values
            return
        self.device.upload(self._parts(values))

    def _parts(self, values: Bytes) -> Iterator[tuple[Tensor, Bytes]]:
        """Cut `values` into those of each tensor, as far as they go."""
        offset = 0
        for form, tensor in zip(self._forms, self._tensors, strict=True):
            if offset >= values.size:
                return
            yield tensor, values[offset : offset + _size_bytes(form)]
            offset += form_bytes(form)

    def _made(self, forms: Sequence[Form]) -> list[Tensor]:
        if self._host is None:
            return [self.device.tensor(*form) for form in forms]
        made, offset = [], 0
        for form in forms:
            shape, dtype = form
            made.append(self.device.view(self._host[offset : offset + _size_bytes(form)].view(dtype).reshape(shape)))
            offset += form_bytes(form)
        return made
