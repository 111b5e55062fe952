"""A session from a file that `session_export` wrote: it comes in whole or not at all.

What stands in a line is `session_lines`'. Memory stays flat: some pages are held at a time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modularbase_core.config import EngineConfig
from modularbase_core.context.cold import ColdStore
from modularbase_core.context.directory import DATA_FILE
from modularbase_core.context.record import PageRecord
from modularbase_core.context.tiers import BASE, STATE
from modularbase_core.errors import InputError, SessionError
from modularbase_core.host.conversations import session_path, shapes_of
from modularbase_core.host.session_files import IMPORTED, sweep
from modularbase_core.host.session_lines import (
    LONGEST_LINE,
    Header,
    Last,
    PageOrder,
    WrongVersion,
    read_header,
    read_line,
)
from modularbase_core.host.session_values import HeldWith, check_base, state_at
from modularbase_core.host.transcript import base_for
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk.architecture import BaseArchitecture

Progress = Callable[[str, int, int], None]

WRITTEN_AT_ONCE: Final = 8 << 20
"""Bytes of pages that one transaction writes: each waits for the disk once."""
_GZIP: Final = b"\x1f\x8b"
_ROOM: Final = 2
"""The store that is filled may take more than the limit, which it is held against page by page: so that nothing is
summarised or dropped to make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came in. base_installed: whether the base that it was held with is there, so that it can go on."""

    name: str
    pages: int
    tokens: int
    base: HeldWith | None
    base_installed: bool


def import_session(
    config: EngineConfig,
    file: Path,
    name: str | None = None,
    *,
    catalog: Catalog,
    progress: Progress | None = None,
) -> Imported:
    """Bring in what `export_session` wrote, under its own name or another.

    Everything is checked before the session is there. catalog: its bases tell how large pages must be. progress:
    called with what is done, and bytes of `file` done and in all. Raises InputError for what cannot be a name, and
    SessionError where the file is no session, damaged or cut short, the name is taken, or it does not fit.
    """
    sweep(config)
    with _Source.open(file) as source:
        header = source.header()
        name = header.name if name is None else name
        path = session_path(config, name)
        if os.path.lexists(path):
            raise _taken(path)
        held = check_base(header.base)
        base = base_for(catalog, held, exactly=True) if held is not None else None
        network = base.manifest.network if base is not None else None
        order = PageOrder(shapes_of(network) if isinstance(network, BaseArchitecture) else None)
        with (
            _beside(path) as scratch,
            ColdStore.open(scratch, limit_bytes=_ROOM * config.session_bytes) as store,
        ):
            at_once = min(WRITTEN_AT_ONCE, config.session_bytes // 4)
            for batch in _batches(source.pages(header, order, progress), at_once):
                _put(store, batch, config.session_bytes, name)
            values = {BASE: header.base, STATE: header.state}
            store.put((), {key: json.dumps(value).encode() for key, value in values.items() if value is not None})
            _appear(scratch, path)
    tokens = state_at(header.state, header.tokens).told_tokens
    return Imported(name=name, pages=header.pages, tokens=tokens, base=held, base_installed=base is not None)


class _Source:
    """Reads an exported file line by line; its errors are SessionErrors that begin with the file."""

    def __init__(self, file: Path, raw: io.BufferedReader) -> None:
        self._file, self._raw = file, raw
        self._lines: io.BufferedReader | gzip.GzipFile | None = None
        self._digest, self._number = hashlib.sha256(), 0
        self._size = os.fstat(raw.fileno()).st_size

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[_Source]:
        """Open a file, packed or not; raises SessionError where it cannot be read."""
        try:
            raw = file.open("rb")
        except FileNotFoundError:
            raise SessionError(f"{file} does not exist; name a file that `modularbase session export` wrote") from None
        except OSError as error:
            raise SessionError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
        with raw:
            yield cls(file, raw)

    def header(self) -> Header:
        """Read the first line."""
        line = self._line()
        try:
            header = read_header(line)
        except WrongVersion as error:
            raise SessionError(
                f"{self._file} cannot be imported: {error}, which this release does not read; use the release that "
                "wrote it"
            ) from error
        except ValueError as error:
            raise SessionError(
                f"{self._file} cannot be imported: {error}; name a file that `modularbase session export` wrote"
            ) from error
        self._digest.update(line)
        return header

    def pages(self, header: Header, order: PageOrder, progress: Progress | None) -> Iterator[PageRecord]:
        """Yield the pages; when there is no more, all that was read is what was written."""
        while True:
            line = self._line()
            try:
                page = read_line(line)
                if isinstance(page, Last):
                    return self._check(header, order, page)
                order.follow(page)
            except ValueError as error:
                raise self._wrong(f"line {self._number}: {error}") from error
            self._digest.update(line)
            if progress is not None:
                done = self._raw.tell() if self._raw.seekable() else 0  # a pipe does not know
                progress(f"importing {self._file.name}", done, self._size)
            yield page

    def _check(self, header: Header, order: PageOrder, last: Last) -> None:
        if last.sha256 != self._digest.hexdigest():
            raise self._wrong("its checksum is not that of its lines, so it was changed or damaged")
        if not order.pages == header.pages == last.pages:
            raise self._wrong(f"it has {order.pages} pages where {header.pages} are promised")
        if order.end != header.tokens:
            raise self._wrong(f"its pages end at token {order.end} where {header.tokens} are promised")
        if self._read():
            raise self._wrong("it goes on after its last line")

    def _line(self) -> bytes:
        line = self._read()
        self._number += 1
        if not line.endswith(b"\n"):
            if len(line) > LONGEST_LINE:
                raise self._wrong(f"line {self._number} is longer than {LONGEST_LINE >> 20} MiB")
            raise self._wrong(f"it is cut short in line {self._number}")
        return line

    def _read(self) -> bytes:
        try:
            if self._lines is None:
                packed = self._raw.peek(len(_GZIP)).startswith(_GZIP)
                self._lines = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
            return self._lines.readline(LONGEST_LINE + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._wrong("what is packed in it is cut short or damaged") from error
        except OSError as error:
            raise SessionError(f"{self._file} cannot be read ({error.strerror}); check its disk") from error

    def _wrong(self, reason: str) -> SessionError:
        return SessionError(f"{self._file} cannot be imported: {reason}; export the session again")


def _batches(pages: Iterable[PageRecord], at_once: int) -> Iterator[list[PageRecord]]:
    batch: list[PageRecord] = []
    size = 0
    for page in pages:
        batch.append(page)
        size += len(page.payload)
        if size >= at_once:
            yield batch
            batch, size = [], 0
    yield batch


def _put(store: ColdStore, pages: list[PageRecord], limit_bytes: int, name: str) -> None:
    store.put(pages)
    if store.bytes_used > limit_bytes or store.dropped:
        raise SessionError(
            f"session {name!r} takes more than the {limit_bytes >> 20} MiB that a session may; raise session_bytes"
        )


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a folder that is no session, and is gone afterwards unless it was renamed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=IMPORTED, dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield scratch
    except SessionError as error:
        raise SessionError(str(error).replace(scratch.name, path.name)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _appear(scratch: Path, path: Path) -> None:
    """Give a filled store its name; it is still claimed, so that nobody takes it for one left behind."""
    try:
        with (scratch / DATA_FILE).open("rb") as data:
            os.fsync(data.fileno())
        scratch.rename(path)
    except OSError as error:
        raise (_taken(path) if path.exists() else _unwritable(path, error)) from error


def _taken(path: Path) -> InputError:
    return InputError(
        f"there is a session {path.name!r} in {path.parent} already; give another name after the file, or delete it"
    )


def _unwritable(path: Path, error: OSError) -> SessionError:
    return SessionError(
        f"session {path.name!r} cannot be kept in {path.parent} ({error.strerror}); free some space there or check who "
        "owns it"
    )
