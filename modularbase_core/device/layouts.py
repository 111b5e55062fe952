"""Weights on the device, in the layouts that an artefact's programs take.

Tensors are made once for an artefact (`PlacedWeights`) and filled from any pack of its architecture; filling
them again is what a swap is. How many bytes that takes is known from the metadata, before anything is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.executable import ALIGNMENT, BoundProgram, Device, Executable, Tensor
from modularbase_core.device.metadata import ArtefactMeta, ParameterMeta

Floats = NDArray[np.float32]


def planned_bytes(meta: ArtefactMeta) -> int:
    """Return the bytes that the weights of `meta`'s programs take on the device."""
    return sum(_size_bytes(parameter) for parameter in _distinct(meta).values())


def arrange(values: Floats, layout: str) -> Floats:
    """Lay a row-major array out as the kernels read it; see `ParameterMeta.layout`."""
    if layout == "row":
        return values
    assert layout == "n32k", f"unknown layout {layout!r}"
    rows, columns = values.shape
    blocks = -(-rows // 32)
    if rows != blocks * 32:
        values = np.concatenate([values, np.zeros((blocks * 32 - rows, columns), values.dtype)])
    return np.ascontiguousarray(values.reshape(blocks, 32, columns).transpose(0, 2, 1))


class PlacedWeights:
    """The weight tensors of one artefact on a device; empty until `fill`."""

    def __init__(self, executable: Executable, device: Device) -> None:
        self.executable = executable
        self._tensors = {
            key: device.tensor(parameter.stored_shape, parameter.dtype)
            for key, parameter in _distinct(executable.meta).items()
        }

    def fill(self, weights: Mapping[str, Floats]) -> None:
        """Copy float32 `weights`, by state_dict name, into the tensors."""
        for (name, layout), tensor in self._tensors.items():
            tensor.write(arrange(weights[name], layout))

    def bind(self, program: str) -> BoundProgram:
        """Join a program with these weights."""
        wanted = self.executable.meta.programs[program].parameters
        chosen: dict[str, Tensor] = {item.name: self._tensors[item.name, item.layout] for item in wanted}
        return self.executable.bind(program, chosen)


def _distinct(meta: ArtefactMeta) -> dict[tuple[str, str], ParameterMeta]:
    return {(item.name, item.layout): item for program in meta.programs.values() for item in program.parameters}


def _size_bytes(parameter: ParameterMeta) -> int:
    size: Any = np.prod(parameter.stored_shape, dtype=np.int64) * np.dtype(parameter.dtype).itemsize
    return int(-(-size // ALIGNMENT) * ALIGNMENT)
