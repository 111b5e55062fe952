"""The header of a safetensors file: which tensors lie where.

Reads the header alone, without numpy, so that listing and checking packs stays cheap; `device.weights` reads
the values. Format: 8 bytes little-endian header length, JSON header, data without gaps.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import WeightsError, nearest
from modularbase_core.sdk.jsonfile import parse_json, shown
from modularbase_core.sdk.parameters import QUANTISATION_GROUP, Shape

ITEM_BYTES: Final = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}
"""Bytes of an item, by the dtypes that a pack's tensors have; a U8 item holds two values of four bits."""
WITH_SCALES: Final = ("I8", "U8")
"""Those whose values are multiples of scales that lie beside them."""
FOREIGN_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
"""Likewise, of the checkpoints that packs are made from."""
SCALE_SUFFIX: Final = ".scale"
METADATA: Final = "__metadata__"
_BYTES: Final = {**ITEM_BYTES, **FOREIGN_BYTES}
_MAX_HEADER_BYTES: Final = 4 << 20  # tens of thousands of tensors; reading JSON takes many times its size
_MAX_AXES: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor; `offset` counts bytes from the start of the file."""

    dtype: str
    shape: Shape
    offset: int

    @property
    def values_shape(self) -> Shape:
        """Shape of the values: that of the items, but for U8 with its two values a byte along the last axis."""
        if self.dtype != "U8" or not self.shape:
            return self.shape
        return (*self.shape[:-1], 2 * self.shape[-1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored values."""
        return prod(self.shape) * _BYTES[self.dtype]


def read_header(
    path: Path, *, dtypes: Container[str] = ITEM_BYTES, remedy: str = "install the pack again"
) -> dict[str, Entry]:
    """Read which tensors a safetensors file holds.

    dtypes: those that it may hold. remedy: what to do about a file that is damaged. Raises WeightsError when the file
    is missing, truncated or no safetensors file; as that library does, also when its tensors overlap or leave gaps.
    """
    header, start, size = _read(path, remedy)
    entries = {
        name: _entry(path, name, item, start, dtypes, remedy) for name, item in header.items() if name != METADATA
    }
    end = start
    for name, entry in sorted(entries.items(), key=lambda one: (one[1].offset, one[1].size_bytes)):
        if entry.offset != end:
            raise WeightsError(
                f"{path} is no safetensors file: {shown(name)} begins at byte {entry.offset}, but what is before it "
                f"ends at {end}; save the weights again"
            )
        end += entry.size_bytes
    if size < end:
        raise WeightsError(f"{path} is truncated: {size} bytes, but its header tells of {end}; {remedy}")
    if size > end:
        raise WeightsError(f"{path} is no safetensors file: {size - end} bytes follow its last tensor; {remedy}")
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file holds beside its tensors; raises WeightsError as `read_header` does."""
    header, _, _ = _read(path, "install the pack again")
    texts: dict[str, str] = header.get(METADATA, {})
    return texts


def check_shapes(path: Path, entries: Mapping[str, Entry], expected: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check that `entries` are the `expected` tensors (None is any size but 0), I8 and U8 ones beside their scales.

    expected: shapes of the values, see `Entry.values_shape`. Raises WeightsError naming the first tensor that is
    missing, unknown or of the wrong shape or dtype.
    """
    allowed = set(expected)
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            raise WeightsError(f"{path} lacks the tensor {name!r}; save the network's whole state_dict")
        values = entry.values_shape
        if len(values) != len(shape) or any(
            got != want if want is not None else got == 0 for got, want in zip(values, shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            how = f" as U8 {list(entry.shape)}, two values a byte" if entry.dtype == "U8" else ""
            raise WeightsError(
                f"{path}: {name!r} has shape {list(values)}{how}, expected [{wanted}]; "
                "correct the manifest's architecture or save the weights again"
            )
        if entry.dtype in WITH_SCALES:
            allowed.add(name + SCALE_SUFFIX)
            _check_scale(path, name, entry, entries.get(name + SCALE_SUFFIX))
    for name in entries:
        if name not in allowed:
            raise WeightsError(f"{path} holds the unknown tensor {shown(name)}{nearest(name, allowed)}; remove it")


def _check_scale(path: Path, name: str, entry: Entry, scale: Entry | None) -> None:
    values = entry.values_shape
    if not values or values[-1] % QUANTISATION_GROUP:
        group = QUANTISATION_GROUP if entry.dtype == "I8" else QUANTISATION_GROUP // 2
        raise WeightsError(
            f"{path}: {name!r} is {entry.dtype} with shape {list(entry.shape)}, but its last axis must be a multiple "
            f"of {group} (a scale is for {QUANTISATION_GROUP} values); store it as F16"
        )
    if scale is None:
        raise WeightsError(
            f"{path} lacks {name + SCALE_SUFFIX!r}, the scales of {name!r}, which is {entry.dtype}; "
            "save the weights again"
        )
    wanted = (*values[:-1], values[-1] // QUANTISATION_GROUP)
    if scale.shape != wanted or scale.dtype not in ("F16", "F32"):
        raise WeightsError(
            f"{path}: {name + SCALE_SUFFIX!r} is {scale.dtype} {list(scale.shape)}, expected F16 {list(wanted)}; "
            "save the weights again"
        )


def _read(path: Path, remedy: str) -> tuple[dict[str, Any], int, int]:  # Any: whatever JSON held
    """Return the header, where the tensors begin, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise WeightsError(f"{path} is truncated or no safetensors file ({size} bytes); {remedy}")
            if length > _MAX_HEADER_BYTES:
                raise WeightsError(
                    f"{path} is no safetensors file: its header is larger than {_MAX_HEADER_BYTES >> 20} MiB; {remedy}"
                )
            content = file.read(length)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    try:
        header = parse_json(content)
    except ValueError as error:
        raise WeightsError(f"{path} is no safetensors file: its header is not JSON ({error}); {remedy}") from error
    if not isinstance(header, dict) or content[:1] != b"{":
        raise WeightsError(f"{path} is no safetensors file: its header is not an object; {remedy}")
    texts = header.get(METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise WeightsError(f"{path} is no safetensors file: its metadata is not texts by name; save the weights again")
    return header, 8 + length, size


# item is whatever JSON held
def _entry(path: Path, name: str, item: Any, start: int, dtypes: Container[str], remedy: str) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"} or not _are_counts(item):
        raise WeightsError(f"{path} is no safetensors file: the entry {shown(name)} is malformed; {remedy}")
    dtype, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    if dtype not in dtypes or dtype not in _BYTES:
        known = ", ".join(one for one in _BYTES if one in dtypes)
        raise WeightsError(f"{path}: {shown(name)} has dtype {dtype:.20}; use one of {known}")
    if len(shape) > _MAX_AXES:
        raise WeightsError(
            f"{path}: {shown(name)} has {len(shape)} axes, more than {_MAX_AXES}; save the weights again"
        )
    entry = Entry(dtype, shape, start + begin)
    if end - begin != entry.size_bytes:
        raise WeightsError(
            f"{path}: {shown(name)} holds {end - begin} bytes, but {dtype} {list(shape)} needs {entry.size_bytes}; "
            f"{remedy}"
        )
    return entry


def _are_counts(item: dict[str, Any]) -> bool:
    shape, offsets = item["shape"], item["data_offsets"]
    return (
        isinstance(item["dtype"], str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        # a bool is an int to Python, and no count
        and all(type(value) is int and value >= 0 for value in (*shape, *offsets))
    )
