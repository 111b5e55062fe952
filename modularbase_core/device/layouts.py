"""Weights on the device, in the layouts that an artefact's programs take.

Decides the order and form of an artefact's weight tensors (`PlacedWeights`), carved from one region that is filled
from any pack of its architecture: that is what a swap is. Their bytes are known before anything is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.artefact import digest_sources
from modularbase_core.device.executable import BoundProgram, Device, Executable
from modularbase_core.device.groups import Floats, quantise_groups
from modularbase_core.device.metadata import (
    QUANTISED_LAYOUTS,
    ArtefactMeta,
    ParameterMeta,
    group_bytes,
    zero_point,
)
from modularbase_core.device.region import Bytes, Form, Region, form_bytes
from modularbase_core.device.weights import WeightsFile, in_blocks
from modularbase_core.sdk.parameters import QUANTISATION_GROUP


def planned_bytes(meta: ArtefactMeta) -> int:
    """Return the bytes that the weights of `meta`'s programs take on the device."""
    return sum(form_bytes(_form(parameter)) for parameter in _distinct(meta).values())


def layout_id(meta: ArtefactMeta) -> str:
    """Name how `lay_out` orders, arranges and types the weights of `meta`: 64 hex digits."""
    # the sources count too, so that a change of an arrangement never meets files of the one before
    folder = Path(__file__).parent
    sources = digest_sources([Path(__file__), folder / "region.py", folder / "groups.py", folder / "weights.py"])
    tensors = [[item.name, item.layout, item.dtype, item.stored_shape] for item in _distinct(meta).values()]
    return hashlib.sha256(json.dumps([sources, tensors]).encode()).hexdigest()


def lay_out(meta: ArtefactMeta, weights: Mapping[str, Floats]) -> Bytes:
    """Return float32 `weights`, by state_dict name, as the bytes of `meta`'s tensors.

    Goes from some rows to the next, so of a file hardly more than the result is ever in memory: an embedding of 152,000
    tokens is half of a base, and as float32 twice the base in int8.
    """
    out, offset = np.zeros(planned_bytes(meta), np.uint8), 0
    places: dict[str, list[tuple[int, ParameterMeta]]] = {}
    for (name, _), parameter in _distinct(meta).items():
        places.setdefault(name, []).append((offset, parameter))
        offset += form_bytes(_form(parameter))
    for name, those in places.items():
        for rows in in_blocks(those[0][1].shape):
            values = weights.rows(name, rows) if isinstance(weights, WeightsFile) else weights[name][rows]
            those = [(_put(out, offset, values, parameter), parameter) for offset, parameter in those]
    return out


def _put(out: Bytes, offset: int, values: Floats, parameter: ParameterMeta) -> int:
    """Arrange some rows of a weight, whole blocks of 32 but for the last, and return where the next ones go."""
    if parameter.layout not in QUANTISED_LAYOUTS:
        values = values.astype(parameter.dtype, copy=False)
    arranged = np.ascontiguousarray(arrange(values, parameter.layout))
    out[offset : offset + arranged.nbytes] = arranged.reshape(-1).view(np.uint8)
    return offset + arranged.nbytes


def arrange(values: NDArray[Any], layout: str) -> NDArray[Any]:
    """Lay a row-major array out as the kernels read it; see `ParameterMeta.layout`.

    Quantised, a block of 32 rows holds group after group of 32 columns: unsigned bytes, four columns of a row side by
    side, 16 rows a vector of 64 bytes, then the 32 rows' scales in float16. Of int4 a byte holds column c of the group
    in its low half and c + 16 in its high half. "t32q8" and "t32q4": see `_in_lanes`.
    """
    if layout == "row":
        return values
    if values.ndim == 3:  # of experts, one after the other
        return np.concatenate([arrange(one, layout) for one in values])
    rows, columns = values.shape
    blocks = -(-rows // 32)
    if rows != blocks * 32:
        values = np.concatenate([values, np.zeros((blocks * 32 - rows, columns), values.dtype)])
    if layout == "n32k":
        return np.ascontiguousarray(values.reshape(blocks, 32, columns).transpose(0, 2, 1))
    bits, groups = QUANTISED_LAYOUTS[layout], columns // QUANTISATION_GROUP
    out = np.empty((blocks, groups, group_bytes(bits)), np.uint8)
    for block in range(blocks):  # one by one, so that a large head needs no copy of itself
        whole, scale = quantise_groups(values[block * 32 : block * 32 + 32], bits)
        (_in_vectors if layout.startswith("n") else _in_lanes)(whole, scale, bits, out[block])
    return out


def _in_vectors(whole: NDArray[np.int8], scale: NDArray[np.float16], bits: int, out: Bytes) -> None:
    """Put a block of 32 rows into `out` [K/32, bytes] for vectors of 16 rows."""
    groups = len(out)
    unsigned = (whole.astype(np.int16) + zero_point(bits)).astype(np.uint8)
    # half of the rows, row, group, step of 4 columns, column -> group, step, half, row, column
    steps = unsigned.reshape(2, 16, groups, 8, 4).transpose(2, 3, 0, 1, 4)
    packed = steps if bits == 8 else steps[:, :4] | (steps[:, 4:] << 4)
    out[:, :-64] = packed.reshape(groups, -1)
    out[:, -64:] = np.ascontiguousarray(scale.T).view(np.uint8)


def _in_lanes(whole: NDArray[np.int8], scale: NDArray[np.float16], bits: int, out: Bytes) -> None:
    """Put a block of 32 rows into `out` [K/32, bytes] for the tensor cores of a GPU, 16 bytes for each lane of a warp.

    Lane 4r + c has the columns 4c.. and 16 + 4c.. of rows r, r + 8, r + 16 and r + 24, signed. int8: of the first two
    rows, 16 bytes: both at the lower columns, then at the upper; 512 bytes on those of the last two. int4: all four
    rows, the lower columns in the low halves of bytes. Scales are in the order r, r + 8, r + 16, r + 24 as well.
    """
    groups = len(out)
    # half of the rows, half of those, row, group, half of the columns, step of 4 columns, column
    parts = whole.view(np.uint8).reshape(2, 2, 8, groups, 2, 4, 4)
    if bits == 8:
        out[:, :-64] = parts.transpose(3, 0, 2, 5, 4, 1, 6).reshape(groups, -1)
    else:
        lanes = parts.transpose(4, 3, 2, 5, 0, 1, 6).reshape(2, groups, -1)
        out[:, :-64] = lanes[0] & 15 | lanes[1] << 4
    out[:, -64:] = (
        np.ascontiguousarray(scale.reshape(4, 8, groups).transpose(2, 1, 0)).view(np.uint8).reshape(groups, -1)
    )


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
        self._region.fill(lay_out(self.executable.meta, weights) if isinstance(weights, Mapping) else weights)

    def bind(self, program: str) -> BoundProgram:
        """Join a program with these weights."""
        wanted = self.executable.meta.programs[program].parameters
        return self.executable.bind(program, {item.name: self._tensors[item.name, item.layout] for item in wanted})


def _distinct(meta: ArtefactMeta) -> dict[tuple[str, str], ParameterMeta]:
    return {(item.name, item.layout): item for program in meta.programs.values() for item in program.parameters}


def _form(parameter: ParameterMeta) -> Form:
    return parameter.stored_shape, parameter.dtype
