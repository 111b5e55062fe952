"""Weights once repacked into the kernels' layout, in files of the cache: what a swap reads, with no conversion.

Decides when a file may be trusted and what is held mapped. A file is named by the digest of model.safetensors and
the layout; beside it lies which weight files (size, time) were found to have that digest.
"""

from __future__ import annotations

import json
import mmap
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from modularbase_core.device.layouts import lay_out, layout_id, planned_bytes
from modularbase_core.device.metadata import ArtefactMeta
from modularbase_core.device.region import Bytes
from modularbase_core.device.weights import WeightsFile
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.files import file_sha256, write_atomically
from modularbase_core.sdk.parameters import parameter_shapes

HEADER_BYTES: Final = 4096
"""A page, so that the weights behind it are aligned as the mapping is."""

_MAGIC: Final = b"modularbase repacked weights 1\n"
_SOURCES: Final = 16  # weight files remembered for one repacked file: copies of a pack in several environments
_STALE_SECONDS: Final = 3600.0


def repacked_folder(cache_dir: Path) -> Path:
    """Return the folder of all repacked weights in a cache."""
    return cache_dir / "weights-repacked"


class RepackedWeights:
    """The repacked files of one cache. host_cache_bytes: how much stays mapped between swaps, the latest used."""

    def __init__(self, folder: Path, host_cache_bytes: int) -> None:
        self._folder, self._host_cache_bytes = folder, host_cache_bytes
        self._held: OrderedDict[str, tuple[tuple[str, int, int], Bytes]] = OrderedDict()
        self._layouts: dict[str, str] = {}
        self._lock = Lock()

    def open(self, path: Path, digest: str | None, meta: ArtefactMeta, *, keep: bool = True) -> Bytes:
        """Return the weights in `path` as `PlacedWeights.fill` takes them, repacked first where the cache lacks them.

        digest: what the manifest says of `path`; without one nothing is kept. keep: whether they will be asked for
        again, so that they stay mapped. Where the cache cannot be written the
        bytes are made in memory. Raises WeightsError on a file that is missing, wrong, or not the manifest's.
        """
        source = _source(path)
        if digest is None or source is None:
            return lay_out(meta, _opened(path, meta))
        name = self._name(digest, meta)
        with self._lock:
            held = self._held.get(name)
            if held is not None and held[0] == source:
                self._held.move_to_end(name)
                return held[1]
        body = self._read(name, source, path, digest, meta)
        return self._hold(name, source, body) if keep else body

    def is_ready(self, path: Path, digest: str | None, meta: ArtefactMeta) -> bool:
        """Tell whether `open` would find a file to map, and so take no time to speak of."""
        source = _source(path)
        if digest is None or source is None:
            return False
        name = self._name(digest, meta)
        return source in self._sources(name) and self._file(name).exists()

    @property
    def held_bytes(self) -> int:
        """Bytes that stay mapped, or in memory where they could not be written."""
        with self._lock:
            return sum(body.size for _, body in self._held.values())

    def _read(self, name: str, source: tuple[str, int, int], path: Path, digest: str, meta: ArtefactMeta) -> Bytes:
        size_bytes, known = planned_bytes(meta), self._sources(name)
        body = _map(self._file(name), name, size_bytes)
        if body is not None and source in known:
            return body
        if _digest(path) != digest:
            _opened(path, meta).check_values()  # which tells more of a file that is cut short or of another kind
            raise WeightsError(f"{path} is not the file that its manifest names (SHA-256); install the pack again")
        if body is None:
            made = lay_out(meta, _opened(path, meta))
            if _source(path) != source:
                raise WeightsError(f"{path} was changed while it was read; try again")
            body = self._write(name, made)
        self._remember(name, [source, *(one for one in known if one[0] != source[0])])
        return body

    def _write(self, name: str, body: Bytes) -> Bytes:
        """Keep `body` as a file and return the file's mapping; where it cannot be kept, return `body`."""
        file = self._file(name)
        try:
            self._sweep()
            write_atomically(file, [_header(name, body.size), body.data])
        except OSError:  # read-only or full: a cache is never needed
            return body
        mapped = _map(file, name, body.size)
        return body if mapped is None else mapped

    def _hold(self, name: str, source: tuple[str, int, int], body: Bytes) -> Bytes:
        with self._lock:
            self._held[name] = (source, body)
            self._held.move_to_end(name)
            while self._held and sum(one.size for _, one in self._held.values()) > self._host_cache_bytes:
                self._held.popitem(last=False)
        return body

    def _sources(self, name: str) -> list[tuple[str, int, int]]:
        """Return the weight files (path, size, time in ns) that were found to hold what `name` was made of."""
        try:
            listed = json.loads((self._folder / f"{name}.json").read_bytes())["sources"]
            return [(str(path), int(size), int(stamp)) for path, size, stamp in listed]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _remember(self, name: str, sources: list[tuple[str, int, int]]) -> None:
        text = json.dumps({"sources": sources[:_SOURCES]}) + "\n"
        with suppress(OSError):  # then the digest is taken again next time
            write_atomically(self._folder / f"{name}.json", [text.encode()])

    def _sweep(self) -> None:
        """Remove what no weight file needs any more, and what a killed writer left."""
        if not self._folder.is_dir():
            return
        for file in self._folder.glob("*.weights"):
            sources = self._sources(file.stem)
            if not any(_source(Path(one[0])) == one for one in sources) and (sources or _is_stale(file)):
                file.unlink(missing_ok=True)
                file.with_suffix(".json").unlink(missing_ok=True)
        for file in self._folder.glob(".*"):
            if _is_stale(file):
                file.unlink(missing_ok=True)

    def _name(self, digest: str, meta: ArtefactMeta) -> str:
        layout = self._layouts.get(meta.key) or layout_id(meta)
        self._layouts[meta.key] = layout
        return f"{digest}-{layout[:16]}"

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.weights"


def _opened(path: Path, meta: ArtefactMeta) -> WeightsFile:
    return WeightsFile(path, parameter_shapes(meta.architecture))


def _source(path: Path) -> tuple[str, int, int] | None:
    """Return what tells a file from a changed one, None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _header(name: str, size_bytes: int) -> bytes:
    return (_MAGIC + f"{name}\n{size_bytes}\n".encode()).ljust(HEADER_BYTES, b"\0")


def _map(file: Path, name: str, size_bytes: int) -> Bytes | None:
    """Map a repacked file; None when it is missing, cut short or of another kind."""
    try:
        with file.open("rb") as opened:
            if opened.read(HEADER_BYTES) != _header(name, size_bytes):
                return None
            if opened.seek(0, 2) != HEADER_BYTES + size_bytes:
                return None
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_WILLNEED)
    body: Any = np.frombuffer(mapped, np.uint8, offset=HEADER_BYTES)
    return body  # type: ignore[no-any-return]


def _is_stale(file: Path) -> bool:
    with suppress(OSError):
        return time.time() - file.stat().st_mtime > _STALE_SECONDS
    return False
