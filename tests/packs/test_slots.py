"""Slots one step at a time: who leaves, who stays, what a failure leaves behind, what is told and when."""

from __future__ import annotations

import pytest

from modularbase_core.errors import BudgetError, PackUnloadable, WeightsError
from modularbase_core.packs.slots import Prepared, Slots


class Shelf:
    """A loader that remembers; packs called `unfit` fail before anything is evicted, `torn` ones while being copied."""

    def __init__(self) -> None:
        self.placed: list[tuple[str, int | None]] = []
        self.told: list[tuple[object, ...]] = []

    def prepare(self, pack_id: str) -> Prepared[str]:
        if pack_id == "unfit":
            raise WeightsError("truncated")

        def place(number: int | None) -> str:
            self.placed.append((pack_id, number))
            if pack_id == "torn":
                raise WeightsError("torn")
            return pack_id

        return Prepared(len(pack_id), place)

    def slots(self, count: int) -> Slots[str]:
        return Slots(
            self.prepare,
            count,
            on_loaded=lambda pack_id, size_bytes, seconds, prefetched: self.told.append(
                ("loaded", pack_id, size_bytes, prefetched)
            ),
            on_evicted=lambda pack_id, successor: self.told.append(("evicted", pack_id, successor)),
        )


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def use(slots: Slots[str], *pack_ids: str) -> None:
    with slots.hold(pack_ids):
        pass


def test_the_least_recently_used_pack_goes_and_a_held_one_stays(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "a")
    use(slots, "b")
    with slots.hold(["a"]), slots.hold(["c"]):
        assert slots.loaded() == ["c", "a"]
    use(slots, "a")
    assert [pack_id for pack_id, _ in shelf.placed] == ["a", "b", "c"]


def test_of_one_turns_packs_the_heaviest_is_the_last_to_go(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "heavy", "light")
    use(slots, "c")
    assert slots.loaded() == ["c", "heavy"]


def test_several_packs_are_held_in_the_order_that_was_asked_for(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    slots.add_resident("resident")
    with slots.hold(["b", "resident", "a", "b"]) as held:
        assert [slot.content for slot in held] == ["b", "resident", "a", "b"]
    use(slots, "c")  # a pack named twice was let go as often


def test_more_packs_than_free_slots_are_refused_and_change_nothing(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "b")
    with slots.hold(["a"]):
        assert not slots.can_hold(["b", "c"])
        with pytest.raises(BudgetError, match=r"^c cannot be loaded .*: 2 slots, 1 busy;"):
            use(slots, "b", "c")
        assert slots.loaded() == ["a", "b"]
    use(slots, "b", "c")


def test_a_pack_that_is_unfit_evicts_nobody(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "a")
    use(slots, "b")
    with pytest.raises(PackUnloadable, match=r"unfit cannot be loaded \(truncated\)"):
        use(slots, "c", "unfit")
    assert slots.loaded() == ["b", "a"]


def test_a_copy_that_fails_leaves_an_empty_slot_and_the_others_alone(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "a")
    with pytest.raises(PackUnloadable, match="torn") as caught:
        use(slots, "torn")
    assert caught.value.pack_id == "torn"
    assert slots.loaded() == ["a"]
    with slots.hold(["a", "b"]):
        assert set(slots.loaded()) == {"a", "b"}


def test_when_one_of_several_cannot_be_copied_none_is_held(shelf: Shelf) -> None:
    slots = shelf.slots(3)
    use(slots, "x", "y", "z")
    with pytest.raises(PackUnloadable):
        use(slots, "a", "torn", "b")
    assert set(slots.loaded()) == {"a", "x"}, "the copy of b had not begun"
    assert shelf.told[3:] == []
    use(slots, "c", "d", "e")
    assert ("evicted", "x", "b") not in shelf.told


def test_ctrl_c_while_a_pack_is_copied_leaves_its_slot_empty() -> None:
    def place(number: int | None) -> str:
        raise KeyboardInterrupt

    slots: Slots[str] = Slots(lambda pack_id: Prepared(1, place), 1)
    with pytest.raises(KeyboardInterrupt), slots.hold(["a"]):
        pass
    assert slots.loaded() == []
    assert slots.can_hold(["b"])


def test_a_pinned_pack_is_brought_in_and_stays_until_it_is_unpinned(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    slots.pin("a")
    for name in "bcd":
        use(slots, name)
    assert set(slots.loaded()) == {"a", "d"}
    assert slots.pinned == {"a"}
    assert not slots.can_hold(["b", "c"])
    slots.unpin("a")
    use(slots, "b", "c")
    assert set(slots.loaded()) == {"b", "c"}


def test_pins_leave_a_slot_free_and_residents_need_none(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    slots.add_resident("resident")
    slots.pin("resident")
    slots.pin("a")
    slots.pin("a")
    with pytest.raises(BudgetError, match="of 2 slots one must stay free for other packs and 1 are pinned"):
        slots.pin("b")
    assert slots.pinned == {"a"}


def test_a_pin_that_cannot_be_loaded_is_none(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    with pytest.raises(PackUnloadable):
        slots.pin("unfit")
    assert slots.pinned == frozenset()


def test_what_fits_together_counts_neither_residents_nor_pins(shelf: Shelf) -> None:
    slots = shelf.slots(3)
    slots.add_resident("resident")
    slots.pin("p")
    assert slots.fitting(["a", "p", "b", "resident", "c"]) == ["a", "p", "b", "resident"]


def test_a_prefetched_pack_is_there_when_it_is_asked_for(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    assert slots.prefetch("a")
    assert not slots.prefetch("a")
    use(slots, "a")
    assert shelf.placed == [("a", 0)]


def test_a_prefetch_evicts_nobody_who_is_held_pinned_or_to_be_kept(shelf: Shelf) -> None:
    slots = shelf.slots(3)
    slots.pin("pinned")
    use(slots, "kept")
    with slots.hold(["held"]):
        assert not slots.prefetch("a", keep=["kept"])
        assert set(slots.loaded()) == {"pinned", "kept", "held"}
        assert slots.prefetch("a")
        assert set(slots.loaded()) == {"pinned", "held", "a"}


def test_a_prefetched_pack_that_nobody_used_goes_first(shelf: Shelf) -> None:
    slots = shelf.slots(2)
    use(slots, "a")
    slots.prefetch("guess")
    use(slots, "b")
    assert set(slots.loaded()) == {"a", "b"}


def test_a_failed_prefetch_leaves_an_empty_slot_and_raises(shelf: Shelf) -> None:
    slots = shelf.slots(1)
    with pytest.raises(PackUnloadable):
        slots.prefetch("torn")
    assert slots.loaded() == []
    use(slots, "a")
    with pytest.raises(PackUnloadable):
        slots.prefetch("unfit")
    assert slots.loaded() == ["a"]


def test_loads_and_evictions_are_told_in_order_by_whoever_holds_next(shelf: Shelf) -> None:
    slots = shelf.slots(1)
    slots.add_resident("resident")
    use(slots, "a")
    assert shelf.told == [("loaded", "a", 1, False)]
    slots.prefetch("guess")
    assert len(shelf.told) == 1
    slots.tell()
    assert shelf.told[1:] == [("evicted", "a", "guess"), ("loaded", "guess", 5, True)]
