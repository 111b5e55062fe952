"""The cold tier: the pages of one conversation on disk, in one LMDB file that a crash cannot tear.

Decides what is one transaction, and what becomes of a page that is damaged on disk: it is dropped and told, never
returned. Rows and checksums are `record`'s, what gives way in a full store `room`'s, the lock and the soundness of
the file `directory`'s; when a page is written or read is decided by others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

import lmdb

from modularbase_core.context import directory as places
from modularbase_core.context import record as rows
from modularbase_core.context import room
from modularbase_core.context.holdings import Holdings
from modularbase_core.context.record import PageEntry, PageRecord, page_index, page_key
from modularbase_core.errors import SessionError
from modularbase_core.sdk.architecture import PAGE_TOKENS

LEAST_LIMIT_BYTES: Final = 1 << 20
ROWS_AT_ONCE: Final = 4096
"""Rows that are copied out at a time: a reader that stays keeps replaced pages from being used again."""

_ROOM_KEY: Final = b"\0room"
_NO_META: Final[Mapping[str, bytes]] = MappingProxyType({})


class ColdStore:
    """The pages of one conversation; open in one process at a time, of use to all its threads.

    Reads copy out of the mapped file and never wait for a write. `summarised` and `dropped` count the pages that
    made room since the store was opened; `limit_bytes` is the most that the file may take.
    """

    def __init__(
        self, directory: Path, claim: int, databases: places.Databases, limit_bytes: int, shrink: room.Shrink | None
    ) -> None:
        self.directory, self.name, self.limit_bytes = directory, directory.name, limit_bytes
        self.summarised = self.dropped = 0
        self._claim, self._db, self._shrink = claim, databases, shrink
        self._block_bytes = int(databases.env.stat()["psize"])
        self._writing = threading.Lock()
        self._telling = threading.Lock()
        self._holdings = Holdings()
        self._bad: set[bytes] = set()  # keys of damaged pages, which the next write deletes
        self._faults: list[str] = []
        self._read_all()

    @classmethod
    def open(
        cls, directory: Path, *, limit_bytes: int, create: bool = True, shrink: room.Shrink | None = None
    ) -> ColdStore:
        """Open the store in `directory`, or make it.

        limit_bytes: the most that its file may take. shrink: makes a summary of a page when the store is full;
        without one pages are dropped at once.
        Raises SessionError if it is open elsewhere, is no store, is damaged as a whole, was written by another
        release or cannot be written. Single damaged pages are dropped; see `take_faults`.
        """
        assert limit_bytes >= LEAST_LIMIT_BYTES, f"a store of {limit_bytes} bytes, of at least {LEAST_LIMIT_BYTES}"
        claim = places.claim(directory, create=create)
        try:
            databases = places.open_databases(directory, limit_bytes)
            try:
                return cls(directory, claim, databases, limit_bytes, shrink)
            except BaseException:
                databases.env.close()
                raise
        except BaseException:
            os.close(claim)
            raise

    def page(self, index: int) -> PageRecord | None:
        """Return a page, in the form that it has by now; None if it is not there or was found damaged."""
        key = page_key(index)
        try:
            with self._db.env.begin() as txn:
                there, page = self._read(txn, key)
        except places.DAMAGE:  # since it was opened
            there, page = True, None
        if there and page is None:
            self._drop_damaged(key)
        return page

    def entries(self) -> Iterator[PageEntry]:
        """Yield what is known of each page, in the order of their numbers; others may write between."""
        for key, row in self._rows():
            entry = rows.read_entry(key, row)
            if entry is None:
                self._drop_damaged(key)
            elif key not in self._bad:  # its payload may be what is damaged
                yield entry

    def put(self, records: Sequence[PageRecord], meta: Mapping[str, bytes] = _NO_META) -> None:
        """Write pages, in place of those of the same number, and values: all of them or nothing.

        When it returns they survive the process; a failure of the machine may undo the last call alone.
        Raises SessionError if the disk is full or fails, or the store is full of pages that must stay: it then
        holds what it held and can be read.
        """
        needed = sum(
            room.extent(len(part), self._block_bytes) for record in records for part in (record.payload, record.bounds)
        )
        more = int(room.MORE * self.limit_bytes)
        with self._writing, self._failures_told():
            over = self.bytes_used + needed - int(room.FULL * self.limit_bytes)
            if over > 0:
                self._make_room(over + more)
            while True:
                try:
                    return self._commit(records, meta)
                except lmdb.MapFullError:  # what is free may not lie side by side
                    if not self._make_room(needed + more):
                        raise

    def drop(self, indices: Iterable[int]) -> None:
        """Forget pages; those that are not there are no error. Raises SessionError as `put` does."""
        with self._writing, self._failures_told():
            self._commit((), drop=indices)

    def favour(self, indices: Iterable[int]) -> None:
        """Note that pages were attended to, so that others give way first while this store is open."""
        self._holdings.favour(indices)

    def meta(self, key: str) -> bytes | None:
        """Return a value written with `put`; None if there is none or it was found damaged."""
        raw = _meta_key(key)
        with self._db.env.begin() as txn:
            sealed = txn.get(raw, db=self._db.meta)
        value = None if sealed is None else rows.unseal(raw, sealed)
        if sealed is not None and value is None:
            self._tell(f"session {self.name!r}: its {key!r} is damaged on disk and is left out")
        return value

    def take_faults(self) -> list[str]:
        """Return, once, a sentence for each page that was lost and for the first one that made room."""
        with self._telling:
            faults, self._faults = self._faults, []
        return faults

    @property
    def bytes_used(self) -> int:
        """Bytes that pages, rows and values take in the file, which itself never shrinks."""
        with self._db.env.begin() as txn:
            stats = [txn.stat(db) for db in (self._db.index, self._db.payloads, self._db.meta)]
        blocks = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return self._block_bytes * int(blocks + 4)  # two heads, the list of databases and that of free blocks

    @property
    def pages(self) -> dict[str, int]:
        """Pages held by form."""
        return self._holdings.pages

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens held by form, padding not counted."""
        return self._holdings.tokens

    def __len__(self) -> int:
        return len(self._holdings)

    def __contains__(self, index: object) -> bool:
        return index in self._holdings

    def close(self) -> None:
        """Let the disk catch up and give the directory up; a second call does nothing. Raises as `put` does."""
        with self._writing:
            if self._claim < 0:
                return
            try:
                with self._failures_told():
                    if self._bad:
                        self._commit(())
                    self._db.env.sync(True)
            finally:
                self._db.env.close()
                os.close(self._claim)
                self._claim = -1

    def __enter__(self) -> ColdStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_all(self) -> None:
        for key, row in self._rows():
            held = rows.read_held(key, row)
            if held is not None:
                self._holdings.hold(page_index(key), held)
            else:
                self._drop_damaged(key)
        with self._db.env.begin() as txn:
            if txn.stat(self._db.payloads)["entries"] > len(self._holdings):  # some lost their rows
                keys = txn.cursor(self._db.payloads).iternext(values=False)
                self._bad.update(key for key in keys if key and page_index(key) not in self._holdings)

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        after = b"\0"
        while True:
            with self._failures_told(), self._db.env.begin() as txn, txn.cursor(self._db.index) as cursor:
                found = cursor.set_range(after)
                batch = list(islice(cursor.iternext(), ROWS_AT_ONCE)) if found else []
            if not batch:
                return
            yield from batch
            after = batch[-1][0] + b"\0"

    def _read(self, txn: lmdb.Transaction[bytes], key: bytes) -> tuple[bool, PageRecord | None]:
        """Return whether anything is there, and the page if it is what was written."""
        row, payload = txn.get(key, db=self._db.index), txn.get(key, db=self._db.payloads)
        return (row or payload) is not None, rows.read_record(key, row or b"", payload)

    def _commit(
        self, records: Sequence[PageRecord] = (), meta: Mapping[str, bytes] = _NO_META, drop: Iterable[int] = ()
    ) -> None:
        written = [(page_key(record.index), rows.write_row(record), record.payload) for record in records]
        values = [(_meta_key(name), value) for name, value in meta.items()]
        dropped = [page_key(index) for index in drop]
        with self._telling:
            bad = list(self._bad)
        with self._db.env.begin(write=True) as txn:
            # a bad one may have been written anew
            for key in [*(key for key in bad if self._read(txn, key)[1] is None), *dropped]:
                txn.delete(key, db=self._db.index)
                txn.delete(key, db=self._db.payloads)
            for key, row, payload in written:
                txn.put(key, row, db=self._db.index)
                txn.put(key, payload, db=self._db.payloads)
            for key, value in values:
                txn.put(key, rows.seal(key, value), db=self._db.meta)
        with self._telling:
            self._bad.difference_update(bad)
        for key in dropped:
            self._holdings.forget(page_index(key))
        for key, row, _ in written:
            held = rows.read_held(key, row)
            assert held is not None
            self._holdings.hold(page_index(key), held)

    def _make_room(self, wanted_bytes: int) -> bool:
        """Free about `wanted_bytes`; return whether anything gave way."""
        freed = 0
        if self._shrink is not None:
            smaller = room.summaries(self._holdings, self.page, self._shrink, self._block_bytes)
            freed = self._give_way(smaller, wanted_bytes)
        if freed < wanted_bytes:
            gone = room.drops(self._holdings, self._payload_bytes, self._block_bytes)
            freed += self._give_way(gone, wanted_bytes - freed)
        if freed:
            # LMDB uses blocks again from the second commit after the one that freed them
            with suppress(lmdb.MapFullError), self._db.env.begin(write=True) as txn:
                txn.put(_ROOM_KEY, b"", db=self._db.meta)
        return freed > 0

    def _give_way(self, steps: Iterator[room.Step], wanted_bytes: int) -> int:
        freed = 0
        while batch := room.next_steps(steps, wanted_bytes - freed):
            smaller = [step.smaller for step in batch if step.smaller]
            try:
                self._commit(smaller, drop=[step.index for step in batch if not step.smaller])
            except lmdb.MapFullError:  # not even space to write what is smaller
                break
            freed += sum(step.freed_bytes for step in batch)
            self._count_given(len(smaller), len(batch) - len(smaller))
        return freed

    def _payload_bytes(self, index: int) -> int:
        with self._db.env.begin(buffers=True) as txn:
            return len(txn.get(page_key(index), b"", db=self._db.payloads))

    def _count_given(self, summarised: int, dropped: int) -> None:
        reached = f"session {self.name!r} has reached its {self.limit_bytes >> 20} MiB: its least important pages are"
        if summarised and not self.summarised:
            self._tell(f"{reached} kept as summaries from now on")
        if dropped and not self.dropped:
            self._tell(f"{reached} dropped from now on")
        self.summarised += summarised
        self.dropped += dropped

    def _drop_damaged(self, key: bytes) -> None:
        with self._telling:
            if key in self._bad:
                return
            self._bad.add(key)
        index = page_index(key)
        self._holdings.forget(index)
        first = index * PAGE_TOKENS
        self._tell(
            f"session {self.name!r}: page {index} (tokens {first} to {first + PAGE_TOKENS - 1}) is damaged on disk "
            "and is dropped"
        )

    def _tell(self, fault: str) -> None:
        with self._telling:
            self._faults.append(fault)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError:
            raise SessionError(
                f"session {self.name!r} is full: nothing in its {self.limit_bytes >> 20} MiB may give way; "
                "give it more room or begin another"
            ) from None
        except lmdb.Error as error:
            raise places.failure(self.directory, error) from error


def _meta_key(name: str) -> bytes:
    key = name.encode()
    assert 0 < len(key) < 512, f"a name of {len(key)} bytes"  # LMDB's longest key
    assert not name.startswith("\0"), "names that begin with a zero are the store's own"
    return key
