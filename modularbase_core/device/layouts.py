"""Weights on the device, in the layouts that an artefact's programs take.

Decides the order and form of an artefact's weight tensors (`PlacedWeights`), carved from one region that is filled
from any pack of its architecture: that is what a swap is. Their bytes are known before anything is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.artefact import digest_sources
from modularbase_core.device.executable import BoundProgram, Device, Executable
from modularbase_core.device.metadata import ArtefactMeta, ParameterMeta
from modularbase_core.device.region import Bytes, Form, Region, form_bytes

Floats = NDArray[np.float32]


def planned_bytes(meta: ArtefactMeta) -> int:
    """Return the bytes that the weights of `meta`'s programs take on the device."""
    return sum(form_bytes(_form(parameter)) for parameter in _distinct(meta).values())


def layout_id(meta: ArtefactMeta) -> str:
    """Name how `lay_out` orders, arranges and types the weights of `meta`: 64 hex digits."""
    # the sources count too, so that a change of an arrangement never meets files of the one before
    folder = Path(__file__).parent
    sources = digest_sources([Path(__file__), folder / "region.py", folder / "weights.py"])
    tensors = [[item.name, item.layout, item.dtype, item.stored_shape] for item in _distinct(meta).values()]
    return hashlib.sha256(json.dumps([sources, tensors]).encode()).hexdigest()


def lay_out(meta: ArtefactMeta, weights: dict[str, Floats]) -> Bytes:
    """Return float32 `weights`, by state_dict name, as the bytes of `meta`'s tensors; empties `weights`."""
    out = np.zeros(planned_bytes(meta), np.uint8)
    wanted, offset = _distinct(meta), 0
    last = dict(wanted.keys())  # of a tensor that is stored in two layouts
    for (name, layout), parameter in wanted.items():
        values = arrange(weights[name], layout).astype(parameter.dtype, copy=False)
        out[offset : offset + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        offset += form_bytes(_form(parameter))
        if last[name] == layout:
            del weights[name]  # so that no more than one copy of the weights is ever resident
    return out


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
    """The weight tensors of one artefact in a region; empty until `fill`.

    beside: forms of more tensors to carve behind the weights, which are then the attribute of that name.
    """

    def __init__(self, executable: Executable, place: Device | Region, beside: Sequence[Form] = ()) -> None:
        self.executable = executable
        wanted = _distinct(executable.meta)
        self._region = Region(place, planned_bytes(executable.meta)) if isinstance(place, Device) else place
        tensors = self._region.carve([*map(_form, wanted.values()), *beside])
        self._tensors = dict(zip(wanted, tensors, strict=False))
        self.beside = tensors[len(wanted) :]

    def fill(self, weights: Mapping[str, Floats] | Bytes) -> None:
        """Copy weights in: float32 by state_dict name, or bytes as `lay_out` made them."""
        self._region.fill(lay_out(self.executable.meta, dict(weights)) if isinstance(weights, Mapping) else weights)

    def bind(self, program: str) -> BoundProgram:
        """Join a program with these weights."""
        wanted = self.executable.meta.programs[program].parameters
        return self.executable.bind(program, {item.name: self._tensors[item.name, item.layout] for item in wanted})


def _distinct(meta: ArtefactMeta) -> dict[tuple[str, str], ParameterMeta]:
    return {(item.name, item.layout): item for program in meta.programs.values() for item in program.parameters}


def _form(parameter: ParameterMeta) -> Form:
    return parameter.stored_shape, parameter.dtype
