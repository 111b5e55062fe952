"""The header of a safetensors file: which tensors lie where.

Reads the header alone, without numpy, so that listing and checking packs stays cheap; `device.weights` reads
the values. Format: 8 bytes little-endian header length, JSON header, data without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import WeightsError, nearest
from modularbase_core.sdk.parameters import QUANTISATION_GROUP, Shape

ITEM_BYTES: Final = {"F32": 4, "F16": 2, "I8": 1}
SCALE_SUFFIX: Final = ".scale"
_MAX_HEADER_BYTES: Final = 100 << 20  # the safetensors library's own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor; `offset` counts bytes from the start of the file."""

    dtype: str
    shape: Shape
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored values."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """Read which tensors a safetensors file holds.

    Raises WeightsError when the file is missing, truncated or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise WeightsError(f"{path} is truncated or no safetensors file ({size} bytes); install the pack again")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; install the pack again") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise WeightsError(f"{path} is no safetensors file: its header is not JSON; install the pack again") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} is no safetensors file: its header is not an object; install the pack again")
    start = 8 + length
    entries = {name: _entry(path, name, item, start) for name, item in header.items() if name != "__metadata__"}
    end = max((entry.offset + entry.size_bytes for entry in entries.values()), default=start)
    if size < end:
        raise WeightsError(f"{path} is truncated: {size} bytes, but its header tells of {end}; install the pack again")
    return entries


def check_shapes(path: Path, entries: Mapping[str, Entry], expected: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check that `entries` are the `expected` tensors (None is any size), I8 ones beside their scales.

    Raises WeightsError naming the first tensor that is missing, unknown or of the wrong shape or dtype.
    """
    allowed = set(expected)
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            raise WeightsError(f"{path} lacks the tensor {name!r}; save the network's whole state_dict")
        if len(entry.shape) != len(shape) or any(
            want not in (None, got) for got, want in zip(entry.shape, shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise WeightsError(
                f"{path}: {name!r} has shape {list(entry.shape)}, expected [{wanted}]; "
                "correct the manifest's architecture or save the weights again"
            )
        if entry.dtype == "I8":
            allowed.add(name + SCALE_SUFFIX)
            _check_scale(path, name, entry, entries.get(name + SCALE_SUFFIX))
    for name in entries:
        if name not in allowed:
            raise WeightsError(f"{path} holds the unknown tensor {name!r}{nearest(name, allowed)}; remove it")


def _check_scale(path: Path, name: str, entry: Entry, scale: Entry | None) -> None:
    if not entry.shape or entry.shape[-1] % QUANTISATION_GROUP:
        raise WeightsError(
            f"{path}: {name!r} is I8 with shape {list(entry.shape)}, but its last axis must be a multiple of "
            f"{QUANTISATION_GROUP}; store it as F16"
        )
    if scale is None:
        raise WeightsError(f"{path} lacks {name + SCALE_SUFFIX!r}, the scales of an I8 tensor; save the weights again")
    wanted = (*entry.shape[:-1], entry.shape[-1] // QUANTISATION_GROUP)
    if scale.shape != wanted or scale.dtype not in ("F16", "F32"):
        raise WeightsError(
            f"{path}: {name + SCALE_SUFFIX!r} is {scale.dtype} {list(scale.shape)}, expected F16 {list(wanted)}; "
            "save the weights again"
        )


# item is whatever JSON held
def _entry(path: Path, name: str, item: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        whole = all(isinstance(value, int) and value >= 0 for value in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise WeightsError(f"{path} is no safetensors file: the entry {name!r} is malformed; install the pack again")
    if dtype not in ITEM_BYTES:
        raise WeightsError(f"{path}: {name!r} has dtype {dtype}; use one of {', '.join(ITEM_BYTES)}")
    entry = Entry(dtype, shape, start + begin)
    if end - begin != entry.size_bytes:
        raise WeightsError(
            f"{path}: {name!r} holds {end - begin} bytes, but {dtype} {list(shape)} needs {entry.size_bytes}; "
            "install the pack again"
        )
    return entry
