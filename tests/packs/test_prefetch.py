"""What is wished for and when, with copies that run at once, or not before a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from modularbase_core.errors import WeightsError
from modularbase_core.packs.history import History
from modularbase_core.packs.prefetch import Prefetcher
from modularbase_core.packs.slots import Prepared, Slots


class Later(Executor):
    """Runs what was submitted when it is told to, or when it is shut down."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, work))
        return future

    def run(self) -> None:
        while self.work:
            future, work = self.work.pop(0)
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.run()


def prepare(pack_id: str) -> Prepared[str]:
    if pack_id == "unfit":
        raise WeightsError("truncated")
    if pack_id == "bug":
        raise ZeroDivisionError
    return Prepared(1, lambda number: pack_id)


@pytest.fixture
def slots() -> Slots[str]:
    made: Slots[str] = Slots(prepare, 2)
    made.add_resident("resident")
    return made


@pytest.fixture
def later() -> Later:
    return Later()


def use(slots: Slots[str], *pack_ids: str) -> None:
    with slots.hold(pack_ids):
        pass


def test_the_packs_of_a_known_route_are_brought_in(slots: Slots[str], later: Later) -> None:
    prefetcher = Prefetcher(slots, runner=lambda: later)
    prefetcher.wish(["a", "resident", "b"])
    assert slots.loaded() == ["resident"]
    later.run()
    assert set(slots.loaded()) == {"resident", "a", "b"}


def test_of_more_packs_than_slots_the_heaviest_come(slots: Slots[str], later: Later) -> None:
    prefetcher = Prefetcher(slots, runner=lambda: later)
    prefetcher.wish(["a", "b", "c"])
    later.run()
    assert set(slots.loaded()) == {"resident", "a", "b"}


def test_a_newer_wish_takes_the_place_of_one_that_has_not_begun(slots: Slots[str], later: Later) -> None:
    prefetcher = Prefetcher(slots, runner=lambda: later)
    prefetcher.wish(["a"])
    prefetcher.wish(["b"])
    later.run()
    assert slots.loaded() == ["resident", "b"]


def test_what_is_in_place_is_not_wished_for(slots: Slots[str], later: Later) -> None:
    use(slots, "a")
    Prefetcher(slots, runner=lambda: later).wish(["a", "resident"])
    assert later.work == []


def test_after_a_turn_its_likely_follower_is_brought_in_but_not_in_place_of_a_likelier_one(
    slots: Slots[str], later: Later
) -> None:
    history = History()
    for now in ["likely"] * 5 + ["rarer"] * 3:
        history.observe("a", now)
    prefetcher = Prefetcher(slots, history, lambda: later)
    use(slots, "b")
    use(slots, "a")
    prefetcher.finished(["a"])
    later.run()
    assert set(slots.loaded()) == {"resident", "a", "likely"}, "what was just used stays, b makes room"


def test_what_waiting_turns_need_is_not_evicted_for_a_habit(slots: Slots[str], later: Later) -> None:
    history = History()
    for _ in range(3):
        history.observe("a", "likely")
    prefetcher = Prefetcher(slots, history, lambda: later)
    use(slots, "b")
    use(slots, "a")
    prefetcher.finished(["a"], waiting=["b"])
    later.run()
    assert set(slots.loaded()) == {"resident", "a", "b"}


def test_turn_after_turn_is_counted_and_kept_when_closed(slots: Slots[str], later: Later, tmp_path) -> None:
    prefetcher = Prefetcher(slots, History(tmp_path / "history.json"), lambda: later)
    for _ in range(2):
        prefetcher.begun(["a", "x"], ["b", "y"])
        prefetcher.begun([], ["c"])  # a new conversation follows what was before
    prefetcher.close()
    history = History(tmp_path / "history.json")
    assert [history.likely(one) for one in "abc"] == [["b"], ["c"], []]


def test_a_pack_that_cannot_be_loaded_is_left_for_its_turn(slots: Slots[str], later: Later) -> None:
    prefetcher = Prefetcher(slots, runner=lambda: later)
    prefetcher.wish(["unfit", "a"])
    later.run()
    prefetcher.wait()
    assert slots.loaded() == ["resident", "a"]


def test_a_mistake_of_ours_is_not_swallowed(slots: Slots[str], later: Later) -> None:
    prefetcher = Prefetcher(slots, runner=lambda: later)
    prefetcher.wish(["bug"])
    later.run()
    with pytest.raises(ZeroDivisionError):
        prefetcher.close()


def test_closing_waits_for_its_thread_and_a_later_wish_begins_another(slots: Slots[str]) -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(slots)
    for name in ("a", "b"):
        prefetcher.wish([name])
        prefetcher.wait()
        assert name in slots.loaded()
        prefetcher.close()
        assert threading.active_count() == before
