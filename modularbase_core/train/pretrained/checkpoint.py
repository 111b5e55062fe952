"""The tensors of a checkpoint, one file or several, read some rows at a time; none is ever in memory whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.errors import WeightsError
from modularbase_core.sdk.jsonfile import read_json, shown
from modularbase_core.sdk.tensorfile import FOREIGN_BYTES, Entry, read_header

Floats = NDArray[np.float32]

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
AT_ONCE: Final = 1 << 19
"""Values that are made float32 in one go, 2 MiB."""
_REMEDY: Final = "download the checkpoint again"
_INDEX_LIMIT_BYTES: Final = 16 << 20
# Any: numpy's dtypes differ in type
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where each tensor lies: its file, and its entry there."""

    tensors: Mapping[str, tuple[Path, Entry]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.tensors[name][1].shape

    def rows(self, name: str) -> Iterator[Floats]:
        """Yield a tensor's values as float32 in order, some rows of its first axis at a time."""
        stored = self._stored(name)
        count = max(1, AT_ONCE // max(1, prod(stored.shape[1:])))
        for first in range(0, len(stored), count):
            yield _as_floats(stored[first : first + count])

    def whole(self, name: str) -> Floats:
        """Return a tensor as float32."""
        return _as_floats(self._stored(name))

    def take(self, name: str, rows: NDArray[np.int64]) -> Floats:
        """Return some rows of a matrix as float32."""
        return _as_floats(self._stored(name)[rows])

    def _stored(self, name: str) -> NDArray[Any]:
        path, entry = self.tensors[name]
        try:
            raw = np.memmap(path, np.uint8, "r", offset=entry.offset, shape=(entry.size_bytes,))
        except (OSError, ValueError) as error:  # gone or cut short since its header was read
            raise WeightsError(f"{path} cannot be read ({error}); {_REMEDY}") from error
        dtype = _DTYPES[entry.dtype]
        aligned: NDArray[Any] = raw if raw.ctypes.data % dtype.itemsize == 0 else raw.copy()
        return aligned.view(dtype).reshape(entry.shape)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers of a checkpoint's files.

    Raises WeightsError, one sentence, when there is none, when one of several is missing, or when a header does not
    tell the truth.
    """
    index = directory / INDEX_FILE
    if index.is_file():
        return Checkpoint(_sharded(directory, index))
    if not (directory / SINGLE_FILE).is_file():
        raise WeightsError(
            f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; weights in other formats, which may run code "
            "when they are read, are not taken: convert them to safetensors"
        )
    return Checkpoint(_of_file(directory / SINGLE_FILE))


def _of_file(path: Path) -> dict[str, tuple[Path, Entry]]:
    entries = read_header(path, dtypes=FOREIGN_BYTES, remedy=_REMEDY)
    return {name: (path, entry) for name, entry in entries.items()}


def _sharded(directory: Path, index: Path) -> dict[str, tuple[Path, Entry]]:
    value = read_json(index, _INDEX_LIMIT_BYTES, WeightsError)
    named = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(named, dict) or not named or not all(_is_file_name(file) for file in named.values()):
        raise WeightsError(f"{index} does not say which file of the folder each tensor is in; {_REMEDY}")
    files = sorted(set(named.values()))
    if lacking := [file for file in files if not (directory / file).is_file()]:
        raise WeightsError(
            f"{directory} lacks {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}, "
            f"{len(lacking)} of {len(files)} files that {INDEX_FILE} names; download what is missing"
        )
    tensors: dict[str, tuple[Path, Entry]] = {}
    for file in files:
        for name, place in _of_file(directory / file).items():
            if named.get(name) != file:
                raise WeightsError(
                    f"{directory / file} holds {shown(name)}, which {INDEX_FILE} looks for elsewhere; {_REMEDY}"
                )
            tensors[name] = place
    for name, file in named.items():
        if name not in tensors:
            raise WeightsError(f"{directory / file} lacks {shown(name)}, which {INDEX_FILE} looks for there; {_REMEDY}")
    return tensors


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and Path(value).name == value


def _as_floats(stored: NDArray[Any]) -> Floats:
    """Make values float32; bfloat16, here as uint16, is the upper half of it."""
    if stored.dtype != _DTYPES["BF16"]:
        return np.array(stored, np.float32)
    wide = np.array(stored, np.uint32)
    wide <<= 16
    return wide.view(np.float32)
