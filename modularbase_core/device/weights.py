"""Weight files: safetensors in the portable form, to float32 arrays and back.

Portable form: row-major F32, F16, or I8 beside `<name>.scale` F16, symmetric, one scale for 32 values along the
last axis. The kernels' own layouts are made from these arrays elsewhere.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
from modularbase_core.sdk.tensorfile import SCALE_SUFFIX, Entry, check_shapes, read_header, read_metadata

Floats = NDArray[np.float32]
Stored = tuple[np.dtype[Any], Shape]
"""How a tensor lies in a file."""

_ALIGNMENT: Final = 64  # bytes; TVM takes no tensor that is less aligned
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.dtype("i1")}
_FLOAT16_MAX: Final = 65504.0


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
    entries = read_header(path)
    expected = {**expected, **{name: shape for name, shape in (optional or {}).items() if name in entries}}
    check_shapes(path, entries, expected)
    try:
        stored = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    tensors = {}
    for name in expected:
        values = _view(stored, entries[name])
        if entries[name].dtype == "I8":
            tensors[name] = _dequantise(values, _view(stored, entries[name + SCALE_SUFFIX]))
        else:
            tensors[name] = values.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise WeightsError(f"{path}: {name!r} holds values that are not finite; train or export it again")
    return tensors


def write_weights(
    path: Path, tensors: Mapping[str, Floats], *, quantise: bool = True, metadata: Mapping[str, str] | None = None
) -> None:
    """Write float32 `tensors` atomically; read them back with `read_weights`.

    With `quantise`, matrices whose last axis is a multiple of 32 become int8 with a scale for 32 values (error at
    most half a scale), the rest float16; without, all stay float32. metadata: text for
    the file's header. Raises WeightsError on values not finite.
    """
    stored: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise WeightsError(f"{name!r} holds values that are not finite, so {path} is not written; lower the rate")
        # beyond float16's range nothing is rounded away
        if not quantise or np.abs(values).max(initial=0.0) > _FLOAT16_MAX:
            stored[name] = np.ascontiguousarray(values, np.dtype("<f4"))
        elif values.ndim >= 2 and values.size and values.shape[-1] % QUANTISATION_GROUP == 0:
            stored[name], stored[name + SCALE_SUFFIX] = _quantise(values)
        else:
            stored[name] = np.ascontiguousarray(values, np.dtype("<f2"))
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

    rows: yields a tensor's values in order, some rows of its first axis at a time. form: fp32, fp16 or int8, which
    leaves matrices of odd width and the `exact` ones float16; vectors stay float32. Raises WeightsError on values that
    are not finite or beyond float16.
    """
    forms = {name: _form(shape, "fp16" if form == "int8" and name in exact else form) for name, shape in shapes.items()}
    units: dict[str, dict[str, Stored]] = {}
    for name, dtype in forms.items():
        units[name] = {name: (dtype, shapes[name])}
        if dtype == _DTYPES["I8"]:
            *outer, last = shapes[name]
            units[name][name + SCALE_SUFFIX] = (_DTYPES["F16"], (*outer, last // QUANTISATION_GROUP))
    # what pushes the next tensor off its alignment comes last
    order = sorted(shapes, key=lambda name: any(_bytes(one) % _ALIGNMENT for one in units[name].values()))
    header = _header({key: one for name in order for key, one in units[name].items()}, {})

    def chunks() -> Iterator[bytes | memoryview]:
        yield header
        for name in order:
            yield from _streamed(name, forms[name], shapes[name], rows(name))

    try:
        write_atomically(path, chunks())
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); free space or write elsewhere") from error


def _streamed(name: str, dtype: np.dtype[Any], shape: Shape, rows: Iterable[Floats]) -> Iterator[bytes]:
    scales: list[bytes] = []
    left = prod(shape)
    for values in rows:
        left -= values.size
        if not np.isfinite(values).all():
            raise WeightsError(f"{name!r} holds values that are not finite, so nothing is written; use sound weights")
        if dtype != _DTYPES["F32"] and np.abs(values).max(initial=0.0) > _FLOAT16_MAX:
            raise WeightsError(f"{name!r} holds values beyond float16, so nothing is written; store it as fp32")
        if dtype == _DTYPES["I8"]:
            quantised, scale = _quantise(values)
            scales.append(scale.tobytes())
            yield quantised.tobytes()
        else:
            yield np.ascontiguousarray(values, dtype).tobytes()
    assert not left, f"{name} lacks {left} values"
    yield from scales


def _form(shape: Shape, form: str) -> np.dtype[Any]:
    if len(shape) < 2 or form == "fp32":
        return _DTYPES["F32"]
    assert form in ("fp16", "int8"), form
    return _DTYPES["I8" if form == "int8" and shape[-1] % QUANTISATION_GROUP == 0 else "F16"]


def _view(stored: NDArray[np.uint8], entry: Entry) -> NDArray[Any]:
    raw = stored[entry.offset : entry.offset + entry.size_bytes]
    if entry.offset % _DTYPES[entry.dtype].alignment:
        raw = raw.copy()
    return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _dequantise(values: NDArray[np.int8], scale: NDArray[np.float16]) -> Floats:
    groups = values.reshape(*scale.shape, QUANTISATION_GROUP).astype(np.float32)
    groups *= scale.astype(np.float32)[..., None]
    return groups.reshape(values.shape)


def _quantise(values: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    groups = values.reshape(*values.shape[:-1], -1, QUANTISATION_GROUP).astype(np.float32)
    exact = np.abs(groups).max(-1) / 127
    scale = exact.astype(np.float16)
    # rounded up, so that no value leaves -127..127 and the error stays within half a scale
    scale = np.where(scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    divisor = np.where(scale == 0, np.float32(1), scale.astype(np.float32))
    return np.rint(groups / divisor[..., None]).astype(np.int8).reshape(values.shape), scale.astype("<f2")


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
