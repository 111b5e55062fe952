"""Slots as a state machine against a plain list: residents stay, holds hold, the least recently used goes."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modularbase_core.errors import BudgetError, PackUnloadable
from modularbase_core.packs.slots import Slots

NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)


class SlotMachine(RuleBasedStateMachine):
    @initialize(count=st.integers(1, 3))
    def start(self, count: int) -> None:
        self.loads: list[str] = []
        self.slots: Slots[str] = Slots(self.load, count)
        self.slots.add_resident("resident")
        self.order: list[str] = []  # least recently used first
        self.open: list[tuple[object, list[str]]] = []

    def load(self, pack_id: str, old: str | None) -> str:
        self.loads.append(pack_id)
        return pack_id.upper()

    def held(self) -> set[str]:
        return {name for _, names in self.open for name in names}

    @rule(names=NAMES)
    def hold(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self.order]
        evictable = [name for name in self.order if name not in self.held() and name not in names]
        room = self.slots.on_demand - len(self.order) + len(evictable)
        assert self.slots.can_hold(names) == (len(missing) <= room)
        block = self.slots.hold([*names, "resident"])
        if len(missing) > room:
            before = self.slots.loaded()
            with pytest.raises(BudgetError, match="name fewer packs"):
                block.__enter__()
            assert self.slots.loaded() == before
            return
        got = block.__enter__()
        assert [slot.content for slot in got] == [*(name.upper() for name in names), "RESIDENT"]
        for name in evictable[: max(0, len(self.order) + len(missing) - self.slots.on_demand)]:
            self.order.remove(name)
        self.order = [name for name in self.order if name not in names] + names
        self.open.append((block, names))

    @rule(which=st.integers(0, 5))
    def let_go(self, which: int) -> None:
        if self.open:
            block, _ = self.open.pop(which % len(self.open))
            block.__exit__(None, None, None)  # type: ignore[attr-defined]

    @invariant()
    def the_right_packs_are_in_place(self) -> None:
        if hasattr(self, "slots"):
            loaded = self.slots.loaded()
            assert loaded[0] == "resident"
            assert set(loaded[1:]) >= self.held()
            assert len(loaded) - 1 <= self.slots.on_demand


TestSlots = SlotMachine.TestCase


def test_the_least_recently_used_pack_goes_and_a_held_one_stays() -> None:
    loads: list[str] = []

    def load(pack_id: str, old: str | None) -> str:
        loads.append(pack_id)
        return pack_id

    slots: Slots[str] = Slots(load, 2)
    for name in ("a", "b"):
        with slots.hold([name]):
            pass
    with slots.hold(["a"]), slots.hold(["c"]):
        assert slots.loaded() == ["c", "a"]
    with slots.hold(["a"]):
        pass
    assert loads == ["a", "b", "c"]


def test_a_load_that_fails_leaves_an_empty_slot_and_the_others_alone() -> None:
    def load(pack_id: str, old: str | None) -> str:
        if pack_id == "bad":
            raise BudgetError("too big")
        return pack_id

    slots: Slots[str] = Slots(load, 2)
    with slots.hold(["a"]):
        pass
    with pytest.raises(PackUnloadable, match="too big"), slots.hold(["bad"]):
        pass
    assert slots.loaded() == ["a"]
    with slots.hold(["a", "b"]):
        assert set(slots.loaded()) == {"a", "b"}
