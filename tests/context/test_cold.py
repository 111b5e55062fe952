"""The cold store: what is put is there, what is full gives way; a payload tells which page it is."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cold_pages import MIB, TOKENS, flip, in_a_child, opened, page, payload_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modularbase_core.context.record import PageRecord
from modularbase_core.errors import SessionError


def test_what_was_put_is_there_and_after_opening_again(tmp_path: Path) -> None:
    with opened(tmp_path / "talk") as store:
        store.put([page(3, pinned=True, importance=0.25), page(1, form="exact", bounds=b"")], {"state": b"\0\1"})
        store.put([page(2, tokens=np.where(TOKENS < 5, TOKENS, -1).astype(np.int32))])
        assert (len(store), 2 in store, 9 in store) == (3, True, False)
    with opened(tmp_path / "talk", create=False) as store:
        assert [entry.index for entry in store.entries()] == [1, 2, 3]
        third = store.page(3)
        assert third is not None
        assert (third.form, third.importance, third.pinned, third.bounds) == ("int8", 0.25, True, b"row")
        assert third.payload == payload_of(3)
        assert third.tokens.tolist() == [*range(3, 19)]
        assert store.page(4) is None
        assert (store.meta("state"), store.meta("none")) == (b"\0\1", None)
        assert store.pages == {"exact": 1, "int8": 2, "int4": 0, "summary": 0}
        assert store.tokens == {"exact": 16, "int8": 21, "int4": 0, "summary": 0}
        assert 3 * 8192 < store.bytes_used < 16 * 8192
        store.drop([1, 7])
        store.put([page(3, 1, form="summary")])
        assert store.pages == {"exact": 0, "int8": 1, "int4": 0, "summary": 1}
        assert (store.page(1), store.page(3).payload) == (None, payload_of(3, 1))
        assert store.take_faults() == []


def test_an_empty_store_is_one(tmp_path: Path) -> None:
    opened(tmp_path / "talk").close()
    with opened(tmp_path / "talk", create=False) as store:
        assert (len(store), list(store.entries()), store.page(0)) == (0, [], None)
        store.close()


DISK_FULL = """
import resource, signal
from modularbase_core.errors import SessionError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with opened(Path(sys.argv[1])) as store:
    store.put([page(index) for index in range(20)])
    size = os.stat(store.directory / "data.mdb").st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9000, resource.RLIM_INFINITY))
    for attempt in range(2):
        try:
            store.put([page(index, 1) for index in range(10, 30)])
        except SessionError as error:
            print(error)
    assert [store.page(index).payload for index in range(20)] == [payload_of(index) for index in range(20)]
    assert len(store) == 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.put([page(20)])
"""


def test_a_full_disk_is_told_and_what_is_stored_stays_readable(tmp_path: Path) -> None:
    child = in_a_child(DISK_FULL, tmp_path / "talk")
    output, problem = child.communicate()
    assert child.returncode == 0, problem
    assert len(output.splitlines()) == 2
    for line in output.splitlines():
        assert line.startswith(f"session 'talk' cannot be kept in {tmp_path}/talk (")
        assert line.endswith("free some space there or use another disk; what it holds stays readable")
    with opened(tmp_path / "talk") as store:
        assert [store.page(index).payload for index in range(21)] == [payload_of(index) for index in range(21)]
        assert store.take_faults() == []


def shrunk(form: str, payload: bytes) -> bytes:
    assert form in ("int8", "int4")
    return b"small " + payload[:994]


def test_a_full_store_summarises_and_then_drops_the_least_important(tmp_path: Path) -> None:
    with opened(tmp_path / "talk", 1, shrink=shrunk) as store:
        store.put([page(0, pinned=True, importance=0.0), page(1, form="exact", importance=0.0)])
        for index in range(2, 100):
            store.put([page(index, importance=index % 2)])
        # the even ones made room, the oldest first; of the odd ones none
        summaries = [entry.index for entry in store.entries() if entry.form == "summary"]
        assert summaries == [*range(2, 2 + 2 * len(summaries), 2)]
        assert (store.summarised, store.dropped) == (len(summaries), 0)
        assert store.page(2).payload == b"small " + payload_of(2)[:994]
        assert store.take_faults() == [
            "session 'talk' has reached its 1 MiB: its least important pages are kept as summaries from now on"
        ]
        for index in range(100, 900):
            store.put([page(index, importance=0.5)])
            assert store.bytes_used <= MIB
        assert store.dropped > 0
        assert store.take_faults() == [
            "session 'talk' has reached its 1 MiB: its least important pages are dropped from now on"
        ]
        assert (store.page(0).payload, store.page(1).payload) == (payload_of(0), payload_of(1))
        assert store.page(899).payload == payload_of(899)
        assert (tmp_path / "talk" / "data.mdb").stat().st_size <= MIB
    with opened(tmp_path / "talk", 1) as store:
        assert (store.take_faults(), store.page(899).payload) == ([], payload_of(899))


def test_without_a_way_to_shrink_pages_are_dropped(tmp_path: Path) -> None:
    with opened(tmp_path / "talk", 1) as store:
        for first in range(0, 400, 8):
            store.put([page(index) for index in range(first, first + 8)])
        held = [entry.index for entry in store.entries()]
        assert held == [*range(400 - len(held), 400)]
        assert (store.summarised, store.dropped) == (0, 400 - len(held))


def test_a_store_full_of_pages_that_must_stay_takes_no_more_and_keeps_them(tmp_path: Path) -> None:
    with opened(tmp_path / "talk", 1, shrink=shrunk) as store:
        count, told = 0, ""
        while not told:
            try:
                store.put([page(count, pinned=True), page(1000 + count, form="exact")])
                count += 1
            except SessionError as error:
                told = str(error)
        assert told == ("session 'talk' is full: nothing in its 1 MiB may give way; give it more room or begin another")
        assert len(store) == 2 * count
        assert [store.page(index).payload for index in range(count)] == [payload_of(index) for index in range(count)]
        with pytest.raises(SessionError, match="is full"):
            store.put([page(index) for index in range(count, 600)])
        assert len(store) == 2 * count
    with opened(tmp_path / "talk", 4) as store:  # more room
        store.put([page(count, pinned=True)])
        assert len(store) == 2 * count + 1


class StoreAgainstADictionary(RuleBasedStateMachine):
    """Pages, values and damage in any order; what is read is what was written, or it was told."""

    indices = st.integers(0, 12)

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, PageRecord] = {}
        self.version = 0
        self.directory = Path(tempfile.mkdtemp())
        self.store = opened(self.directory)

    @rule(which=st.sets(indices, max_size=5), form=st.sampled_from(["exact", "int8", "summary"]))
    def put(self, which: set[int], form: str) -> None:
        self.version += 1
        size = 1000 if form == "summary" else 5000
        new = [page(i, form=form, payload=payload_of(i, self.version, size), bounds=b"b" * (i * 90)) for i in which]
        self.store.put(new, {"version": str(self.version).encode()})
        self.model.update({record.index: record for record in new})

    @rule(which=st.sets(indices, max_size=3))
    def drop(self, which: set[int]) -> None:
        self.store.drop(which)
        for index in which:
            self.model.pop(index, None)

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = opened(self.directory)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.model)))
        self.store.close()
        whole = (self.directory / "data.mdb").read_bytes()
        payload, at = self.model[index].payload, -1
        while (at := whole.find(payload, at + 1)) >= 0:  # replaced ones may still lie there
            flip(self.directory, at + data.draw(st.integers(0, len(payload) - 1)))
        self.store = opened(self.directory)
        assert self.store.page(index) is None
        assert len(self.store.take_faults()) == 1
        del self.model[index]

    @invariant()
    def all_is_as_written(self) -> None:
        assert [entry.index for entry in self.store.entries()] == sorted(self.model)
        assert len(self.store) == len(self.model) == sum(self.store.pages.values())
        for index, record in self.model.items():
            found = self.store.page(index)
            assert found is not None
            assert (found.payload, found.form, found.bounds) == (record.payload, record.form, record.bounds)
        assert int(self.store.meta("version") or 0) == self.version
        assert self.store.take_faults() == []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


StoreAgainstADictionary.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestStoreAgainstADictionary = StoreAgainstADictionary.TestCase
