"""Weight files: safetensors in the portable form, to float32 arrays and back.

Portable form: row-major F32, F16, or I8 or U8 (two values a byte) beside `<name>.scale` F16, one scale for 32 values
along the last axis, see `groups`. The kernels' own layouts are made from these arrays elsewhere.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.groups import (
    Floats,
    dequantise_groups,
    dequantise_int4,
    pack_int4,
    quantise_groups,
)
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.architecture import Architecture
from modularbase_core.sdk.files import write_atomically
from modularbase_core.sdk.parameters import (
    QUANTISATION_GROUP,
    Shape,
    background_shapes,
    optional_routing_shapes,
    parameter_shapes,
    routing_shapes,
)
from modularbase_core.sdk.precision import stored_dtype
from modularbase_core.sdk.tensorfile import SCALE_SUFFIX, WITH_SCALES, Entry, check_shapes, read_header, read_metadata

Stored = tuple[np.dtype[Any], Shape]
"""How a tensor lies in a file: its items."""
Rows = slice | EllipsisType

_ALIGNMENT: Final = 64  # bytes; TVM takes no tensor that is less aligned
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
_FLOAT16_MAX: Final = 65504.0
_AT_ONCE: Final = 1 << 20


def read_weights(path: Path, architecture: Architecture) -> dict[str, Floats]:
    """Read every parameter of `architecture` as float32, dequantised, by state_dict name.

    Raises WeightsError in one sentence: missing or truncated file, missing, unknown or misshapen tensor.
    """
    return read_tensors(path, parameter_shapes(architecture))


@dataclass(frozen=True, slots=True)
class Routing:
    """How a pack is found, see `packs.keys`. keys: [n, key_size], unit rows.

    against: [m, key_size], what its messages are told from beside the router's background; None for nothing.
    made_with: names the base and router weights that the keys were made with, empty where they do not say.
    """

    keys: Floats
    scale: float
    bias: float
    made_with: str = ""
    against: Floats | None = None


def read_routing(path: Path, key_size: int) -> Routing:
    """Read a pack's routing keys; raises WeightsError as `read_weights` does."""
    values = read_tensors(path, routing_shapes(key_size), optional=optional_routing_shapes(key_size))
    made_with = read_metadata(path).get("made_with", "")
    scale, bias = float(values["scale"][0]), float(values["bias"][0])
    return Routing(values["keys"], scale, bias, made_with, values.get("against"))


@dataclass(frozen=True, slots=True)
class Background:
    """What a router brings to tell packs' messages from: `centres` [n, key_size] and queries `others` [m, key_size]."""

    centres: Floats
    others: Floats


def read_background(path: Path, key_size: int) -> Background:
    """Read a router's background; raises WeightsError as `read_weights` does."""
    values = read_tensors(path, background_shapes(key_size))
    return Background(values["background"], values["others"])


def read_tensors(
    path: Path,
    expected: Mapping[str, tuple[int | None, ...]],
    *,
    optional: Mapping[str, tuple[int | None, ...]] | None = None,
) -> dict[str, Floats]:
    """Read exactly the `expected` tensors as float32, and those of `optional` that are there; None is any size."""
    return dict(WeightsFile(path, expected, optional=optional))


class WeightsFile(Mapping[str, Floats]):
    """The tensors of a file by name, each read as float32 whenever it or some of its rows are asked for, and not kept.

    Takes what `read_tensors` takes. Header and shapes are checked when it is made, values as they are read; either
    raises WeightsError.
    """

    def __init__(
        self,
        path: Path,
        expected: Mapping[str, tuple[int | None, ...]],
        *,
        optional: Mapping[str, tuple[int | None, ...]] | None = None,
    ) -> None:
        self._path, self._entries = path, read_header(path)
        there = {name: shape for name, shape in (optional or {}).items() if name in self._entries}
        self._expected = {**expected, **there}
        check_shapes(path, self._entries, self._expected)
        try:
            self._stored = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error

    def __getitem__(self, name: str) -> Floats:
        if name not in self._expected:
            raise KeyError(name)
        return self.rows(name, ...)

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected)

    def __len__(self) -> int:
        return len(self._expected)

    def check_values(self) -> None:
        """Read every tensor once; raises WeightsError at the first that is not finite."""
        for name in self:
            for rows in in_blocks(self._entries[name].values_shape):
                self.rows(name, rows)

    def rows(self, name: str, rows: Rows) -> Floats:
        """Read some rows of the first axis of a tensor; ... is all of it."""
        entry = self._entries[name]
        values = _view(self._stored, entry)
        if entry.dtype in WITH_SCALES:
            scale = _view(self._stored, self._entries[name + SCALE_SUFFIX])
            dequantise = dequantise_int4 if entry.dtype == "U8" else dequantise_groups
            # a row of a vector is one value, and a scale is for 32
            values = dequantise(values[rows], scale[rows]) if values.ndim > 1 else dequantise(values, scale)[rows]
        else:
            values = values[rows].astype(np.float32)
        if not np.isfinite(values).all():
            raise WeightsError(f"{self._path}: {name!r} holds values that are not finite; train or export it again")
        return values


def in_blocks(shape: Shape) -> Iterator[Rows]:
    """Yield slices of the first axis that are 4 MiB of float32 or the least multiple of 32 rows, but for the last."""
    if not shape:
        yield ...
        return
    count = max(1, _AT_ONCE // max(1, prod(shape[1:])) // 32) * 32
    for first in range(0, shape[0], count):
        yield slice(first, first + count)


def write_weights(
    path: Path, tensors: Mapping[str, Floats], *, form: str = "int8", metadata: Mapping[str, str] | None = None
) -> None:
    """Write float32 `tensors` atomically; read them back with `read_weights`.

    form: fp32, fp16, int8 or int4, see `precision.stored_dtype`; but for fp32, what is no integer is float16 (the error
    of int8 is at most half a scale). metadata: text for the file's header. Raises WeightsError on values not finite.
    """
    stored: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise WeightsError(f"{name!r} holds values that are not finite, so {path} is not written; lower the rate")
        # beyond float16's range nothing is rounded away
        dtype = stored_dtype(name, values.shape, form)
        if np.abs(values).max(initial=0.0) > _FLOAT16_MAX:
            dtype = "F32"
        if dtype in WITH_SCALES:
            stored[name], stored[name + SCALE_SUFFIX] = _quantised(values, dtype)
        else:
            stored[name] = np.ascontiguousarray(values, _DTYPES[dtype])
    try:
        write_atomically(path, _file_chunks(stored, metadata or {}))
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); free space or write elsewhere") from error


def stream_weights(
    path: Path,
    shapes: Mapping[str, Shape],
    rows: Callable[[str], Iterable[Floats]],
    *,
    form: str,
    exact: Container[str] = (),
) -> None:
    """Write tensors atomically as `write_weights` does, a few rows at a time, so that none is in memory whole.

    rows: yields a tensor's values in order, some rows of its first axis at a time. form: as there, but the `exact`
    matrices are never integers, and vectors stay float32. Raises WeightsError on values that are not finite or beyond
    float16.
    """
    dtypes = {
        name: stored_dtype(name, shape, "fp16" if name in exact and form != "fp32" else form)
        if len(shape) > 1
        else "F32"
        for name, shape in shapes.items()
    }
    units = {name: _units(name, dtype, shapes[name]) for name, dtype in dtypes.items()}
    # what pushes the next tensor off its alignment comes last
    order = sorted(shapes, key=lambda name: any(_bytes(one) % _ALIGNMENT for one in units[name].values()))
    header = _header({key: one for name in order for key, one in units[name].items()}, {})

    def chunks() -> Iterator[bytes | memoryview]:
        yield header
        for name in order:
            yield from _streamed(name, dtypes[name], shapes[name], rows(name))

    try:
        write_atomically(path, chunks())
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); free space or write elsewhere") from error


def _streamed(name: str, dtype: str, shape: Shape, rows: Iterable[Floats]) -> Iterator[bytes]:
    scales: list[bytes] = []
    left = prod(shape)
    for values in rows:
        left -= values.size
        if not np.isfinite(values).all():
            raise WeightsError(f"{name!r} holds values that are not finite, so nothing is written; use sound weights")
        if dtype != "F32" and np.abs(values).max(initial=0.0) > _FLOAT16_MAX:
            raise WeightsError(f"{name!r} holds values beyond float16, so nothing is written; store it as fp32")
        if dtype in WITH_SCALES:
            quantised, scale = _quantised(values, dtype)
            scales.append(scale.tobytes())
            yield quantised.tobytes()
        else:
            yield np.ascontiguousarray(values, _DTYPES[dtype]).tobytes()
    assert not left, f"{name} lacks {left} values"
    yield from scales


def _units(name: str, dtype: str, shape: Shape) -> dict[str, Stored]:
    """Tell how a tensor of `shape` lies in the file, with its scales if it has some."""
    if dtype not in WITH_SCALES:
        return {name: (_DTYPES[dtype], shape)}
    *outer, last = shape
    items = last // 2 if dtype == "U8" else last
    return {
        name: (_DTYPES[dtype], (*outer, items)),
        name + SCALE_SUFFIX: (_DTYPES["F16"], (*outer, last // QUANTISATION_GROUP)),
    }


def _quantised(values: Floats, dtype: str) -> tuple[NDArray[Any], NDArray[np.float16]]:
    if dtype == "I8":
        return quantise_groups(values)
    whole, scale = quantise_groups(values, 4)
    return pack_int4(whole), scale


def _view(stored: NDArray[np.uint8], entry: Entry) -> NDArray[Any]:
    """View a tensor where it lies, which need not be aligned."""
    raw = stored[entry.offset : entry.offset + entry.size_bytes]
    return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _file_chunks(stored: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Lay tensors out without gaps (the format forbids them) yet 64-byte aligned wherever sizes allow it."""
    # odd sizes last (float32 before float16 before int8), so that they push nothing else off its alignment
    order = sorted(stored, key=lambda name: (stored[name].nbytes % _ALIGNMENT > 0, -stored[name].itemsize))
    header = _header({name: (stored[name].dtype, stored[name].shape) for name in order}, metadata)
    return [header, *(values.tobytes() for values in map(stored.__getitem__, order))]


def _header(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """Describe tensors that lie one after the other, behind a header that ends aligned."""
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _bytes((dtype, shape))
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(stored: Stored) -> int:
    dtype, shape = stored
    return prod(shape) * dtype.itemsize
