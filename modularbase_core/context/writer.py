"""A thread that writes pages to the cold store, so that the token loop never waits for the disk.

Decides what goes to disk together: all that waits, in one transaction. What is worth keeping, and in which form, is
`tiers`'; where a write fails the conversation goes on in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Final

from modularbase_core.context.codec import PageValues, encode_many
from modularbase_core.context.cold import ColdStore
from modularbase_core.context.record import PageEntry, PageRecord
from modularbase_core.errors import SessionError

WAITING_PAGES: Final = 64
"""Pages that may wait, by default: 5 MiB of the nano base in float32, four blocks of a text that is read."""
ENCODED_AT_ONCE: Final = 16
"""Pages that are encoded together: more do not fit the processor's cache."""


class ColdWriter:
    """Writes to `store` until it is closed; at most `waiting_pages` are held here, then `submit` waits for the disk."""

    def __init__(self, store: ColdStore, *, waiting_pages: int = WAITING_PAGES) -> None:
        assert waiting_pages > 0
        self.waiting_pages = waiting_pages
        self._store = store
        self._waiting: dict[int, _Page] = {}
        self._writing: Mapping[int, _Page] = {}
        self._closing = self._failed = False
        self._bug: BaseException | None = None
        self._faults: list[str] = []
        self._changed = threading.Condition()
        # a daemon: a program that ends without closing loses what waits, instead of never ending
        self._thread = threading.Thread(target=self._run, name=f"cold writer of {store.name}", daemon=True)
        self._thread.start()

    def submit(self, entries: Sequence[PageEntry], values: PageValues) -> None:
        """Have pages encoded, each in its form, and written; one of the same number that still waits is replaced.

        values: of the pages in their order, with a leading axis. The arrays become the writer's and must not be
        written to any more. Waits only while `waiting_pages` are held. Never raises: after a failure pages are let
        go of.
        """
        with self._changed:
            assert not self._closing, "a page for a writer that is closed"
            for row, entry in enumerate(entries):
                if not self._has_room(entry.index):
                    self._changed.notify_all()
                    self._changed.wait_for(partial(self._has_room, entry.index))
                if not self._failed:
                    self._waiting[entry.index] = _Page(entry, values, row)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was submitted is on disk, or is given up. Raises what a bug raised in the thread."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing)
            bug, self._bug = self._bug, None
        if bug is not None:
            raise bug

    def close(self) -> None:
        """Flush and end the thread; the store stays open. A second call does nothing. Raises as `flush` does."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.flush()

    @property
    def failed(self) -> bool:
        """Whether writing was given up."""
        return self._failed

    def take_faults(self) -> list[str]:
        """Return, once, why pages could not be written."""
        with self._changed:
            faults, self._faults = self._faults, []
        return faults

    def __enter__(self) -> ColdWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_room(self, index: int) -> bool:
        return self._failed or index in self._waiting or len(self._waiting) + len(self._writing) < self.waiting_pages

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._writing, self._waiting = self._waiting, {}
            fault, bug = "", None
            try:
                self._store.put(_encoded(list(self._writing.values())))
            except SessionError as error:
                fault = f"{error}; from now on older pages of this conversation are not kept"
            except BaseException as error:  # raised again where the writer is flushed
                bug = error
            with self._changed:
                self._writing = {}
                if fault or bug:
                    self._failed, self._waiting, self._bug = True, {}, bug
                    self._faults += [fault] if fault else []
                self._changed.notify_all()


@dataclass(frozen=True, slots=True, eq=False)
class _Page:
    entry: PageEntry
    values: PageValues  # of all pages that were submitted with it
    row: int


def _encoded(pages: Sequence[_Page]) -> list[PageRecord]:
    def alike(page: _Page) -> tuple[str, int]:
        return page.entry.form, id(page.values)

    records: list[PageRecord] = []
    for (form, _), group in groupby(sorted(pages, key=alike), key=alike):
        some = list(group)
        for first in range(0, len(some), ENCODED_AT_ONCE):
            part = some[first : first + ENCODED_AT_ONCE]
            payloads = encode_many(_rows(part[0].values, [page.row for page in part]), form)
            records += [_record(page.entry, payload) for page, payload in zip(part, payloads, strict=True)]
    return records


def _rows(values: PageValues, rows: list[int]) -> PageValues:
    """Return some of many pages; those that lie side by side are not copied."""
    beside = rows == list(range(rows[0], rows[0] + len(rows)))
    chosen = slice(rows[0], rows[0] + len(rows)) if beside else rows
    return PageValues(values.hidden[chosen], values.understanding[chosen], values.fusion[chosen])


def _record(entry: PageEntry, payload: bytes) -> PageRecord:
    return PageRecord(
        index=entry.index,
        form=entry.form,
        tokens=entry.tokens,
        importance=entry.importance,
        pinned=entry.pinned,
        bounds=entry.bounds,
        payload=payload,
    )
