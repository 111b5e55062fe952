import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cold_pages import MIB, TOKENS

from modularbase_core.context.codec import FORMS, PageShapes, PageValues, decode, encode
from modularbase_core.context.cold import ColdStore
from modularbase_core.context.record import PageEntry, PageRecord
from modularbase_core.context.writer import ColdWriter
from modularbase_core.errors import SessionError

SHAPES = PageShapes(hidden_size=8, understanding_layers=1, fusion_layers=1, kv_heads=1, head_size=4)


def values_of(number: float) -> PageValues:
    each = (SHAPES.hidden, SHAPES.understanding, SHAPES.fusion)
    return PageValues(*(np.full(shape, number, np.float32) for shape in each))


def stacked(numbers: Sequence[float]) -> PageValues:
    each = [values_of(number) for number in numbers]
    return PageValues(
        *(np.stack([getattr(one, name) for one in each]) for name in ("hidden", "understanding", "fusion"))
    )


def entry(index: int, form: str = "exact") -> PageEntry:
    return PageEntry(index=index, form=form, tokens=TOKENS, importance=0.5, pinned=False)


def submit(writer: ColdWriter, index: int, number: float | None = None, form: str = "exact") -> None:
    writer.submit([entry(index, form)], stacked([index if number is None else number]))


class SlowStore:
    """Takes pages once its gate is open, or raises."""

    name = "talk"

    def __init__(self, error: BaseException | None = None) -> None:
        self.gate, self.busy, self.error = threading.Event(), threading.Event(), error
        self.puts: list[list[int]] = []
        self.pages: dict[int, PageRecord] = {}

    def put(self, records: Sequence[PageRecord], meta: Mapping[str, bytes] = {}) -> None:  # never written
        self.busy.set()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        self.puts.append([record.index for record in records])
        self.pages.update({record.index: record for record in records})


@pytest.fixture
def slow() -> Iterator[SlowStore]:
    store = SlowStore()
    yield store
    store.gate.set()


def test_pages_are_encoded_and_on_disk_after_a_flush(tmp_path: Path) -> None:
    with ColdStore.open(tmp_path, limit_bytes=16 * MIB) as store, ColdWriter(store) as writer:
        for first in range(0, 50, 10):
            pages = range(first, first + 10)
            entries = [replace(entry(page, FORMS[page % 4]), tokens=TOKENS + page, pinned=page == 3) for page in pages]
            told = [replace(one, importance=one.index / 50, bounds=b"%d" % one.index) for one in entries]
            writer.submit(told, stacked(pages))
        writer.flush()
        assert store.pages == {"exact": 13, "int8": 13, "int4": 12, "summary": 12}
        for index in range(50):
            page = store.page(index)
            assert page is not None
            assert (page.importance, page.pinned, page.bounds) == (index / 50, index == 3, b"%d" % index)
            assert page.tokens.tolist() == (TOKENS + index).tolist()
            assert page.payload == encode(values_of(index), page.form)
            assert np.allclose(decode(page.payload, SHAPES, page.form).hidden, index, rtol=1e-3)
        assert (writer.take_faults(), writer.failed) == ([], False)


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    with ColdStore.open(tmp_path, limit_bytes=16 * MIB) as store:
        writer = ColdWriter(store)
        submit(writer, 7)
        writer.close()
        writer.close()
        assert 7 in store


def test_all_that_waits_is_written_at_once_and_the_later_of_two_wins(slow: SlowStore) -> None:
    with ColdWriter(slow) as writer:
        submit(writer, 0)
        assert slow.busy.wait(20)
        for index in range(1, 40):
            submit(writer, index)
        submit(writer, 5, 99.0)
        submit(writer, 0, 77.0)
        slow.gate.set()
        writer.flush()
        assert [sorted(indices) for indices in slow.puts] == [[0], [*range(40)]]
        assert decode(slow.pages[5].payload, SHAPES, "exact").hidden[0, 0] == 99.0
        assert decode(slow.pages[0].payload, SHAPES, "exact").hidden[0, 0] == 77.0


def test_submitting_waits_only_at_the_bound(slow: SlowStore) -> None:
    with ColdWriter(slow, waiting_pages=4) as writer:
        for index in range(4):
            submit(writer, index)
        thread = threading.Thread(target=submit, args=(writer, 4))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        slow.gate.set()
        thread.join(20)
        writer.flush()
        assert sorted(slow.pages) == [0, 1, 2, 3, 4]
        assert writer.waiting_pages == 4


def test_more_than_may_wait_is_submitted_bit_by_bit(tmp_path: Path) -> None:
    with ColdStore.open(tmp_path, limit_bytes=16 * MIB) as store, ColdWriter(store, waiting_pages=4) as writer:
        writer.submit([entry(index, FORMS[index % 2]) for index in range(11)], stacked(range(11)))
        writer.flush()
        assert [decode(store.page(page).payload, SHAPES, FORMS[page % 2]).hidden[0, 0] for page in range(11)] == (
            pytest.approx(range(11), rel=1e-3)
        )


def test_after_a_failure_pages_are_let_go_of_and_submitting_never_raises_or_waits() -> None:
    store = SlowStore(SessionError("session 'talk' cannot be kept in /talk (no space); free some space"))
    writer = ColdWriter(store, waiting_pages=2)
    submit(writer, 0)
    assert store.busy.wait(20)
    submit(writer, 1)
    thread = threading.Thread(target=submit, args=(writer, 2))  # at the bound
    thread.start()
    store.gate.set()
    thread.join(20)
    assert not thread.is_alive()
    for index in range(100):
        submit(writer, index)
    writer.flush()
    assert writer.failed
    assert writer.take_faults() == [
        "session 'talk' cannot be kept in /talk (no space); free some space; "
        "from now on older pages of this conversation are not kept"
    ]
    assert (writer.take_faults(), store.puts) == ([], [])
    writer.close()


def test_a_store_that_is_full_ends_the_writing_and_nothing_else(tmp_path: Path) -> None:
    with ColdStore.open(tmp_path, limit_bytes=MIB) as store, ColdWriter(store, waiting_pages=16) as writer:
        big = PageValues(
            *(np.zeros(shape, np.float32) for shape in ((1, 16, 64), (1, 4, 2, 2, 256), (1, 4, 2, 2, 256)))
        )
        for index in range(100):
            writer.submit([entry(index)], big)
        writer.flush()
        (fault,) = writer.take_faults()
        assert "is full: nothing in its 1 MiB may give way" in fault
        assert 0 < len(store) < 100
        assert all(store.page(entry.index) is not None for entry in store.entries())


@pytest.mark.parametrize("end", [ColdWriter.flush, ColdWriter.close])
def test_a_bug_is_raised_where_it_is_waited_for(end: object) -> None:
    store = SlowStore(ZeroDivisionError("ours"))
    store.gate.set()
    writer = ColdWriter(store)
    submit(writer, 0)
    with pytest.raises(ZeroDivisionError, match="ours"):
        end(writer)
    writer.close()
    assert (writer.take_faults(), writer.failed) == ([], True)
