"""Slots as a state machine against a plain model, with copies under way in threads that a test lets go on or fail."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier, Event, Thread

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modularbase_core.errors import BudgetError, PackUnloadable, WeightsError
from modularbase_core.packs.policy import Eviction, eviction
from modularbase_core.packs.slots import Prepared, Slot, Slots

PATIENCE = 60.0  # seconds until a deadlock is called one
PACK = st.sampled_from("abcdefghij")
PACKS = st.lists(PACK, min_size=1, max_size=3, unique=True)


class Memory:
    """The device: what lies at which place. A pack is torn while it is copied, and whole or gone afterwards."""

    def __init__(self) -> None:
        self.at: dict[int | None, str] = {}
        self.unfit: set[str] = set()
        self.torn: dict[str, BaseException] = {}
        self.gates: dict[str, tuple[Event, Event]] = {}  # pack: (has begun, may go on)

    def prepare(self, pack_id: str) -> Prepared[str]:
        if pack_id in self.unfit:
            raise WeightsError("unfit")

        def place(number: int | None) -> str:
            self.at[number] = "torn"
            if pack_id in self.gates:
                begun, go_on = self.gates[pack_id]
                begun.set()
                assert go_on.wait(PATIENCE)
            if pack_id in self.torn:
                raise self.torn[pack_id]
            self.at[number] = pack_id
            return pack_id

        return Prepared(1, place)


class SlotMachine(RuleBasedStateMachine):
    @initialize(count=st.integers(2, 3), name=st.sampled_from(["lru", "lfru"]))
    def start(self, count: int, name: str) -> None:
        self.memory = Memory()
        self.count = count
        self.slots: Slots[str] = Slots(self.memory.prepare, count, policy=eviction(name))
        self.slots.add_resident("resident")
        self.open: list[tuple[AbstractContextManager[list[Slot[str]]], list[str]]] = []
        self.pins: set[str] = set()
        self.coming: tuple[str, Future[bool], Event] | None = None
        self.threads = ThreadPoolExecutor(2)

    def teardown(self) -> None:
        if hasattr(self, "slots"):
            self.let_copy_end(fails=False)
            self.threads.shutdown()

    def standing(self) -> set[str]:
        return set(self.slots.loaded()) - {"resident"}

    def held(self) -> set[str]:
        return {name for _, names in self.open for name in names}

    def room(self, keep: set[str]) -> int:
        """Slots that may be emptied, but for those that are being filled."""
        fixed = self.standing() & (self.held() | self.pins | keep)
        return self.count - len(fixed) - (self.coming is not None)

    def waits(self, names: list[str]) -> bool:
        """Whether a hold of `names` depends on the copy that is under way."""
        if self.coming is None:
            return False
        missing = set(names) - self.standing() - {self.coming[0]}
        return self.coming[0] in names or len(missing) > self.room(set(names))

    def doomed(self, names: list[str]) -> set[str]:
        """Those of `names` that would have to be loaded and cannot."""
        return (self.memory.unfit | set(self.memory.torn)) & (set(names) - self.standing())

    def do(self, work: Callable[[], object], names: list[str]) -> None:
        """Do what may wait for the copy under way: in another thread then, while the copy is let go on here."""
        if self.waits(names):
            waiting = self.threads.submit(work)
            self.let_copy_end(fails=False)
            waiting.result(PATIENCE)
        else:
            work()

    @rule(names=PACKS, cancel=st.booleans())
    def hold(self, names: list[str], cancel: bool) -> None:
        coming = {self.coming[0]} if self.coming is not None else set()
        before, missing = self.standing(), [name for name in names if name not in self.standing()]
        if self.coming is not None and self.coming[0] in names:
            missing.remove(self.coming[0])
            room = self.room(set(names))  # its slot is one that `names` needs
        else:
            room = self.room(set(names)) + (self.coming is not None and self.coming[0] not in self.pins)
        assert self.slots.can_hold(names) == (len(missing) <= room)
        block = self.slots.hold([*names, "resident"])
        if len(missing) > room:
            with pytest.raises(BudgetError, match="name fewer packs"):
                block.__enter__()
            assert self.standing() == before
        elif self.doomed(names):
            with pytest.raises((PackUnloadable, KeyboardInterrupt)):
                self.do(block.__enter__, names)
            assert self.standing() <= before | set(names) | coming
            if not self.doomed(names) & set(self.memory.torn):  # found out before anyone had to go
                assert self.standing() >= before
        else:
            self.do(block.__enter__, names)
            assert self.standing() >= set(names)
            self.open.append((block, names))
            if cancel:
                self.open.pop()
                assert not block.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9))
    def let_go(self, which: int) -> None:
        block, _ = self.open.pop(which % len(self.open))
        block.__exit__(None, None, None)

    @rule(name=PACK)
    def pin(self, name: str) -> None:
        there = name in self.standing() or (self.coming is not None and self.coming[0] == name)
        if len(self.pins | {name}) >= self.count or not (there or self.slots.can_hold([name])):
            with pytest.raises(BudgetError):
                self.slots.pin(name)
        elif self.doomed([name]):
            with pytest.raises((PackUnloadable, KeyboardInterrupt)):
                self.do(lambda: self.slots.pin(name), [name])
        else:
            self.do(lambda: self.slots.pin(name), [name])
            self.pins.add(name)
        assert self.slots.pinned == self.pins

    @rule(name=PACK)
    def unpin(self, name: str) -> None:
        self.slots.unpin(name)
        self.pins.discard(name)

    @rule(name=PACK, keep=st.sets(PACK, max_size=2))
    def prefetch(self, name: str, keep: set[str]) -> None:
        before = self.standing()
        possible = name not in before and (self.coming is None or self.coming[0] != name) and self.room(keep) > 0
        if possible and (name in self.memory.unfit or name in self.memory.torn):
            with pytest.raises((PackUnloadable, KeyboardInterrupt)):
                self.slots.prefetch(name, keep)
        else:
            assert self.slots.prefetch(name, keep) == possible
        assert self.standing() >= before & keep

    @precondition(lambda self: self.coming is None)
    @rule(name=PACK)
    def begin_to_prefetch(self, name: str) -> None:
        """Begin a copy in another thread, and leave it half done."""
        if name in self.standing() or name in self.memory.unfit or not self.room(set()):
            return
        begun, go_on = Event(), Event()
        self.memory.gates[name] = (begun, go_on)
        future = self.threads.submit(self.slots.prefetch, name)
        assert begun.wait(PATIENCE)
        self.coming = (name, future, go_on)
        del self.memory.gates[name]
        assert name not in self.slots.loaded()

    @rule(fails=st.booleans())
    def let_copy_end(self, fails: bool) -> None:
        if self.coming is None:
            return
        name, future, go_on = self.coming
        if fails:
            self.memory.torn.setdefault(name, WeightsError("torn"))
        go_on.set()
        if name in self.memory.torn:
            with pytest.raises((PackUnloadable, KeyboardInterrupt)):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE)
        self.coming = None

    @rule(name=PACK, error=st.sampled_from([WeightsError("torn"), KeyboardInterrupt()]), where=st.integers(0, 2))
    def break_or_mend(self, name: str, error: BaseException, where: int) -> None:
        if self.coming is None or self.coming[0] != name:
            self.memory.unfit.discard(name)
            self.memory.torn.pop(name, None)
            if where == 0:
                self.memory.unfit.add(name)
            elif where == 1:
                self.memory.torn[name] = error

    @invariant()
    def what_is_in_place_is_whole_and_within_the_plan(self) -> None:
        if hasattr(self, "slots"):
            loaded = self.slots.loaded()
            assert loaded[0] == "resident"
            assert set(loaded) >= self.held() | self.pins
            assert len(set(loaded)) == len(loaded) <= self.count + 1
            assert set(self.memory.at) <= {None, *range(self.count)}
            whole = {one for one in self.memory.at.values() if one != "torn"}
            assert set(loaded) == whole
            assert sorted(self.slots.contents()) == sorted(loaded)


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("policy", ["lru", "lfru"])
def test_threads_that_want_all_slots_at_once_take_turns_and_all_end(policy: str) -> None:
    strategy: Eviction = eviction(policy)
    memory = Memory()
    slots: Slots[str] = Slots(memory.prepare, 2, policy=strategy)
    together = Barrier(4)
    done: list[str] = []

    def work(names: str) -> None:
        together.wait(PATIENCE)
        for _ in range(50):
            while True:
                try:
                    with slots.hold(names) as held:
                        assert [slot.content for slot in held] == list(names)
                        assert {memory.at[slot.number] for slot in held} == set(names)
                    break
                except BudgetError:  # the others hold the slots
                    continue
        done.append(names)

    threads = [Thread(target=work, args=(names,)) for names in ("ab", "bc", "ca", "da")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(done) == ["ab", "bc", "ca", "da"]


def test_a_hold_waits_for_the_copy_under_way_and_does_not_load_again() -> None:
    memory, placed = Memory(), []
    half_way, go_on = Barrier(2), Event()

    def prepare(pack_id: str) -> Prepared[str]:
        def place(number: int | None) -> str:
            placed.append(pack_id)
            half_way.wait(PATIENCE)
            assert go_on.wait(PATIENCE)
            return memory.prepare(pack_id).place(number)

        return Prepared(1, place)

    slots: Slots[str] = Slots(prepare, 2)
    with ThreadPoolExecutor(2) as threads:
        prefetch = threads.submit(slots.prefetch, "a")
        half_way.wait(PATIENCE)
        assert slots.can_hold(["a"])
        assert slots.contents() == []

        def hold() -> list[str | None]:
            with slots.hold(["a"]) as held:
                return [slot.content for slot in held]

        held = threads.submit(hold)
        assert not held.done()
        go_on.set()
        assert prefetch.result(PATIENCE)
        assert held.result(PATIENCE) == ["a"]
    assert placed == ["a"]
