"""The tiers of one conversation: the only mover of its pages between the hot pool and the cold store.

Decides when a page is kept, in which form, and which come back for a block; what a token sees is `page`'s, the files
are `cold`'s. Hidden states and keys are as they were when they were read: nothing is computed again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.bounds import BoundsIndex
from modularbase_core.context.codec import PageValues, decode, encode
from modularbase_core.context.cold import ColdStore
from modularbase_core.context.heard import Heard
from modularbase_core.context.hot import HotPages
from modularbase_core.context.judge import CRITICAL, REDUNDANT, Judge, Judgement
from modularbase_core.context.page import PageTable
from modularbase_core.context.record import PageEntry, PageRecord
from modularbase_core.context.tier_settings import Recalled, TierSettings, TierSizes
from modularbase_core.context.words import WordIndex
from modularbase_core.context.writer import ColdWriter
from modularbase_core.errors import BudgetError, SessionError
from modularbase_core.sdk.architecture import PAGE_TOKENS

FRESH_PAGES: Final = 2
"""New pages that a block may bring back, of those its window has room for; a question may bring them all. Each costs
the packs a page of prefill: 2 are an eighth of a block's own."""
NAMED: Final = 3
"""Of four pages that come back, so many may be found by the words of a question; attention finds the others."""
STATE: Final = "state"
BASE: Final = "base"
PROBE_TOKENS: Final = 32
"""Tokens whose queries search; twice as many gained 0.2 % of perplexity and took twice as long to search."""


class Tiers:
    """What one conversation keeps beyond its hot window.

    open_store: makes or opens its store when the first page is kept. journal: keep each page as soon as it is full,
    so that the conversation outlives the process; else only what leaves the hot window.
    """

    def __init__(
        self, hot: HotPages, settings: TierSettings, open_store: Callable[[], ColdStore], *, journal: bool = False
    ) -> None:
        self._hot, self.settings, self._open_store, self.journal = hot, settings, open_store, journal
        shapes = settings.shapes
        self._bounds = BoundsIndex(shapes.understanding_layers, shapes.kv_heads, shapes.head_size)
        self._words = WordIndex(settings.vocabulary_size)
        self._judge = Judge(settings.spell, settings.importance)
        self.heard = Heard(settings.controls)
        self._store: ColdStore | None = None
        self._writer: ColdWriter | None = None
        self._failed = False
        self._sinks = settings.window.sink_tokens // PAGE_TOKENS
        self._indexed = self._sinks  # pages before it are searched, but for the sinks
        self._kept = 0 if journal else self._sinks  # pages before it were handed to the store
        self._pinned: set[int] = set()  # pages to be kept exactly once they are full
        self._rows: dict[int, bytes] = {}  # what searches read, of pages that are not both searched and kept yet
        self.question: tuple[int, ...] = ()
        """The words that were asked for last; they are sought until the next question."""
        self.recalled: tuple[Recalled, ...] = ()
        self._faults: list[str] = []

    # what is read

    def rewind(self, tokens: int) -> None:
        """Forget what comes from `tokens` on; it was noted since the last page was indexed, or is dropped."""
        self.heard.rewind(tokens)
        whole = tokens // PAGE_TOKENS
        for page in range(max(whole, self._sinks), self._indexed):
            self._lose(page)
        self._indexed = max(self._sinks, min(self._indexed, whole))
        self._rows = {page: row for page, row in self._rows.items() if page < whole}
        if self._kept > whole and self._store is not None:
            self.flush()
            self._store.drop(range(whole, self._kept))
        self._kept = min(self._kept, whole)

    # what is searched

    @property
    def has_cold(self) -> bool:
        """Whether anything that left the hot window can be searched."""
        return len(self._bounds) > 0

    def index(self, table: PageTable, token: int) -> None:
        """Make the pages that are out of sight from `token` on searchable; their keys are still hot."""
        end = table.first_recent(token) // PAGE_TOKENS
        first = max(self._indexed, -(-self.heard.first // PAGE_TOKENS))
        pages = [page for page in range(first, end) if table.holds(page)]  # one that was damaged on disk is not
        self._indexed = max(self._indexed, end)
        if not pages:
            return
        lacking = [page for page in pages if page not in self._rows]
        self._note_rows(lacking, self._hot.understanding.read_rows([table.page(page) for page in lacking]))
        self._bounds.add_many(pages, [self._rows[page] for page in pages])
        self._words.add_many(pages, [self.heard.page(page) for page in pages])
        self._forget()

    def recall(self, table: PageTable, token: int, queries: NDArray[np.float32], *, question: bool) -> None:
        """Bring the pages back that `queries` and the last question ask for, to be seen from `token` on.

        All before `token` is through. queries: [R, L, H, D], turned to where recalled pages lie. A block brings few
        new pages, a question all.
        """
        before, room = table.first_recent(token) // PAGE_TOKENS, self.settings.recall_pages
        named = self._words.search(self.question, before=before, count=room * NAMED // 4).tolist()
        by = dict.fromkeys(named, "its words")
        found = self._bounds.search(queries, before=before, count=room).tolist()
        held = table.recalled(token - 1)
        fresh = room if question else FRESH_PAGES
        for page in found:
            if page not in by and len(by) < room and (page in held or fresh > 0):
                fresh -= page not in held
                by[page] = "attention"
        for page in held:  # room is left where few new pages may come
            if len(by) < room and page < before:
                by.setdefault(page, "attention")
        pages = sorted(by)
        table.recall(token, [page for page in pages if page not in table.lacking(pages)])
        self._hot.pool.trim(table, token)  # what goes makes room for what comes
        there = self._bring(table, pages)
        table.recall(token, there)
        if self._store is not None:
            self._store.favour(page for page in there if page not in held)
        self.recalled = tuple(Recalled(page * PAGE_TOKENS, by[page]) for page in there)

    def _bring(self, table: PageTable, pages: list[int]) -> list[int]:
        """See that pages are in the hot pool; return those that are."""
        lacking = table.lacking(pages)
        records = self._read(lacking)
        try:
            page_ids = self._hot.pool.allocate(len(records))
        except BudgetError as error:
            self._fault(f"{len(records)} pages are not brought back ({error})")
            records, page_ids = {}, []
        for page_id, (page, record) in zip(page_ids, records.items(), strict=True):
            self._hot.write(page_id, decode(record.payload, self.settings.shapes, record.form))
            table.place(page, page_id)
        return [page for page in pages if page in records or page not in lacking]

    # what is kept

    def settle(self, table: PageTable, fused: int) -> None:
        """Keep what is due: pages out of sight once `fused` tokens are through, or all that are full."""
        end = (fused if self.journal else table.first_recent(fused)) // PAGE_TOKENS
        pages = [page for page in range(self._kept, end) if table.holds(page)]
        self._kept = max(self._kept, end)
        if not pages or (writer := self._writing()) is None:
            return
        values = self._hot.read([table.page(page) for page in pages])
        lacking = [row for row, page in enumerate(pages) if page not in self._rows]
        self._note_rows([pages[row] for row in lacking], values.understanding[lacking])
        tokens = np.stack([self.heard.page(page) for page in pages])
        roles, typed = zip(*map(self.heard.who, pages), strict=True)
        judgements = self._judge.judge(tokens, roles, typed=typed)
        writer.submit(list(map(self._entry, pages, tokens, judgements)), values)
        self._pinned.difference_update(pages)
        self._forget()

    def _entry(self, page: int, tokens: NDArray[np.int32], judged: Judgement) -> PageEntry:
        form = {CRITICAL: "exact", REDUNDANT: "summary"}.get(judged.kind, self.settings.form)
        pinned = page in self._pinned
        return PageEntry(
            index=page,
            form="exact" if pinned else form,
            tokens=tokens,
            importance=judged.importance,
            pinned=pinned,
            bounds=self._rows[page],
        )

    def pin(self, table: PageTable, first: int) -> None:
        """Keep all from token `first` on as exactly as it is still known, whatever else must go."""
        pages = range(first // PAGE_TOKENS, -(-table.tokens // PAGE_TOKENS))
        self._pinned.update(page for page in pages if page >= self._kept)
        records = self._read([page for page in pages if page < self._kept])
        exact = {page: encode(self._held(table, page), "exact") for page in records if table.holds(page)}
        again = [
            replace(one, pinned=True, form="exact" if page in exact else one.form, payload=exact.get(page, one.payload))
            for page, one in records.items()
        ]
        self._put(again, {})

    def _held(self, table: PageTable, page: int) -> PageValues:
        held = self._hot.read([table.page(page)])
        return PageValues(held.hidden[0], held.understanding[0], held.fusion[0])

    def _put(self, records: Sequence[PageRecord], meta: Mapping[str, bytes]) -> None:
        try:
            if self._store is not None:
                self._store.put(records, meta)
        except SessionError as error:
            self._fault(f"{error}; the conversation goes on, but this much of it is not kept")

    def _note_rows(self, pages: Sequence[int], understanding: NDArray[np.floating]) -> None:
        """Compute the search rows of pages from their understanding [N, L, 2, K, 16 * D]."""
        if pages:
            keys = self._keys_of(understanding)
            self._rows.update(zip(pages, self._bounds.row(keys.astype(np.float32, copy=False)), strict=True))

    def _keys_of(self, understanding: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the keys [N, L, K, D, 16] of pages' understanding [N, L, 2, K, 16 * D]."""
        shapes = self.settings.shapes
        return understanding[:, :, 0].reshape(len(understanding), -1, shapes.kv_heads, shapes.head_size, PAGE_TOKENS)

    def _forget(self) -> None:
        """Let go of what is searched and kept, but for the last tokens, whose queries search."""
        done = min(self._kept, self._indexed)
        for page in [page for page in self._rows if page < done]:
            del self._rows[page]
        self.heard.forget(min(done * PAGE_TOKENS, self.heard.end - PROBE_TOKENS))

    # the store

    def _writing(self) -> ColdWriter | None:
        """Return what writes to the store, made at the first need; None where it cannot be, which is told once."""
        if self._writer is None and not self._failed:
            try:
                self._open()
            except SessionError as error:
                self._failed = True
                self._fault(f"{error}; the conversation goes on in the hot window alone")
        return self._writer

    def _open(self) -> ColdStore:
        store = self._open_store()
        held_with = store.meta(BASE)
        if held_with is None:
            store.put((), {BASE: self.settings.base.encode()})
        elif held_with.decode() != self.settings.base:
            store.close()
            raise SessionError(
                f"session {store.name!r} was held with the base {_named(held_with.decode())}, but "
                f"{_named(self.settings.base)} is installed; install that one, or use another name"
            )
        self._store, self._writer = store, ColdWriter(store)
        return store

    def _read(self, pages: Sequence[int]) -> dict[int, PageRecord]:
        if not pages or self._store is None or self._writer is None:
            return {}
        if any(page not in self._store for page in pages):
            self._writer.flush()
        records = {page: self._store.page(page) for page in pages}
        for page, record in records.items():
            if record is None and page not in self._store and page in self._words:
                self._lose(page)
        return {page: record for page, record in records.items() if record is not None}

    def _lose(self, page: int) -> None:
        self._bounds.remove(page)
        self._words.remove(page)

    def flush(self) -> None:
        """Wait until all that was handed over is on disk, or could not be kept."""
        if self._writer is not None:
            self._writer.flush()

    def checkpoint(self, table: PageTable, pending: Sequence[int]) -> None:
        """Keep the page that is not full, and the tokens that were told but not read, so that nothing is lost.

        Between turns, of a journal: what `restore` goes on from.
        """
        if (writer := self._writing()) is None:
            return
        writer.flush()
        records = []
        page, count = divmod(table.tokens, PAGE_TOKENS)
        if count:
            tokens = np.full(PAGE_TOKENS, -1, np.int32)
            tokens[:count] = self.heard.last(table.tokens, count)
            payload = encode(self._held(table, page), "exact")
            records.append(
                PageRecord(index=page, form="exact", tokens=tokens, importance=1.0, pinned=True, payload=payload)
            )
        state = {"tokens": table.tokens, "pending": list(pending), "recalls": table.recalls, "question": self.question}
        state["recalled"] = [(one.token, one.by) for one in self.recalled]
        self._put(records, {STATE: json.dumps(state).encode()})

    def restore(self, table: PageTable) -> tuple[NDArray[np.int32], list[int]]:
        """Take up a conversation from its store: fill the empty `table`; return its token ids and what is pending.

        Raises SessionError if the store cannot be opened, BudgetError if its window does not fit the hot pages.
        """
        store = self._open()
        entries = list(store.entries())
        if not entries:
            return np.zeros(0, np.int32), []
        ids = np.concatenate([entry.tokens[entry.tokens >= 0] for entry in entries])
        end = entries[-1].index * PAGE_TOKENS + int((entries[-1].tokens >= 0).sum())
        state = json.loads(store.meta(STATE) or b"{}")
        current = state.get("tokens") == end  # else it was killed in the middle of a turn
        if end % PAGE_TOKENS and store.page(end // PAGE_TOKENS) is None:  # damaged: what it held is gone
            ids, end = ids[: len(ids) - end % PAGE_TOKENS], end - end % PAGE_TOKENS
        table.restore(end)
        recent = table.first_recent(end) // PAGE_TOKENS
        self._kept = end // PAGE_TOKENS
        self._indexed = max(self._sinks, min(recent, self._kept))
        cold = [entry for entry in entries if self._sinks <= entry.index < self._indexed and entry.bounds]
        if cold:
            self._bounds.add_many([entry.index for entry in cold], [entry.bounds for entry in cold])
            self._words.add_many([entry.index for entry in cold], np.stack([entry.tokens for entry in cold]))
        self._rows = {entry.index: entry.bounds for entry in entries if entry.index >= self._indexed and entry.bounds}
        recalls = [(int(first), list(pages)) for first, pages in state.get("recalls", ())] if current else []
        self._judge.seen(ids[: len(ids) // PAGE_TOKENS * PAGE_TOKENS].reshape(-1, PAGE_TOKENS))
        hot = [*range(self._sinks), *range(max(recent, self._sinks), -(-end // PAGE_TOKENS))]
        for first, pages in recalls:
            table.recall(first, self._bring(table, pages))
        self._bring(table, hot)
        # what is known without a gap up to the end: a page that was damaged takes those before it out of searches
        missing = [page for page in range(self._indexed, -(-end // PAGE_TOKENS)) if not table.holds(page)]
        known = (missing[-1] + 1 if missing else self._indexed) * PAGE_TOKENS - (0 if missing else PROBE_TOKENS)
        self.heard.restore(ids, end, min(len(ids), end - max(0, known)))
        if current:
            self.question = tuple(state.get("question", ()))
            self.recalled = tuple(Recalled(int(token), str(by)) for token, by in state.get("recalled", ()))
        return ids, list(state.get("pending", ())) if current else []

    def entries(self) -> Iterator[PageEntry]:
        """Yield what is known of each page that was kept, in the order of the pages."""
        self.flush()
        return iter(()) if self._store is None else self._store.entries()

    def close(self) -> None:
        """Let go of the store; one that was made for this process alone is deleted."""
        writer, store, self._writer, self._store = self._writer, self._store, None, None
        if writer is not None and store is not None:
            try:
                writer.close()
            finally:
                store.close()
                if not self.journal:
                    shutil.rmtree(store.directory, ignore_errors=True)

    def take_faults(self) -> list[str]:
        """Return, once, what went wrong and was mended, a sentence each."""
        faults, self._faults = self._faults, []
        for part in (self._store, self._writer):
            faults += part.take_faults() if part is not None else []
        return faults

    def _fault(self, sentence: str) -> None:
        self._faults.append(sentence)

    # what is told

    def measure(self, table: PageTable) -> TierSizes:
        """Count what the conversation holds, and where."""
        store = self._store
        return TierSizes(
            tokens=table.tokens,
            hot_tokens=min(table.tokens, len(table.page_ids) * PAGE_TOKENS),
            cold_tokens=store.tokens if store is not None else {},
            cold_bytes=store.bytes_used if store is not None else 0,
            limit_bytes=store.limit_bytes if store is not None else 0,
            index_bytes=int(len(self._bounds) * PAGE_TOKENS * self.index_bytes_per_token),
        )

    @property
    def index_bytes_per_token(self) -> float:
        """Bytes of memory that a cold token takes for being found."""
        return self._bounds.bytes_per_token + self._words.bytes_per_token


def _named(base: str) -> str:
    described = json.loads(base or "{}")
    return f"{described.get('id')} {described.get('version')}"
