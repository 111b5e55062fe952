"""Where packs live on the device: residents for good, the rest by turns in a few slots of fixed size.

Decides who is evicted (least recently used, never a resident, never one in use). How weights get into a
slot is the loader's; what a pack remembers of a conversation dies with its place and is rebuilt by `turn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from modularbase_core.errors import BudgetError, ModularBaseError, PackUnloadable

Loaded = TypeVar("Loaded")


@dataclass(slots=True)
class Slot(Generic[Loaded]):
    """One place: what is in it, how many turns hold it, and when it was last used."""

    name: str
    pack_id: str | None = None
    content: Loaded | None = None
    holds: int = 0
    used: int = 0


@dataclass(slots=True)
class Slots(Generic[Loaded]):
    """Residents and on-demand slots. load(pack id, the slot's old content) fills a slot or raises."""

    load: Callable[[str, Loaded | None], Loaded]
    on_demand: int
    residents: dict[str, Slot[Loaded]] = field(default_factory=dict)
    _slots: list[Slot[Loaded]] = field(default_factory=list)
    _clock: int = 0

    def __post_init__(self) -> None:
        self._slots = [Slot(f"slot {number}") for number in range(1, self.on_demand + 1)]

    def add_resident(self, pack_id: str) -> None:
        """Load a pack that is never evicted."""
        self.residents[pack_id] = Slot(pack_id, pack_id, self.load(pack_id, None))

    def loaded(self) -> list[str]:
        """Return the ids of the packs in place, residents first, then the most recently used."""
        ordered = sorted(self._slots, key=lambda slot: -slot.used)
        return [*self.residents, *(slot.pack_id for slot in ordered if slot.pack_id is not None)]

    def contents(self) -> list[Loaded]:
        """Return what is in place."""
        places = [*self.residents.values(), *self._slots]
        return [slot.content for slot in places if slot.content is not None]

    def can_hold(self, pack_ids: Sequence[str]) -> bool:
        """Tell whether `hold` would find room now, without waiting for others to let go."""
        missing = [pack_id for pack_id in pack_ids if self._find(pack_id) is None]
        wanted = [slot for slot in self._slots if slot.holds == 0 and slot.pack_id not in pack_ids]
        return len(missing) <= len(wanted)

    def fitting(self, pack_ids: Sequence[str]) -> list[str]:
        """Return those of `pack_ids` that could be held together if nothing else were: the first ones where too many.

        Residents take no slot.
        """
        taking = [pack_id for pack_id in pack_ids if pack_id not in self.residents]
        return [pack_id for pack_id in pack_ids if pack_id not in taking[self.on_demand :]]

    @contextmanager
    def hold(self, pack_ids: Sequence[str]) -> Iterator[list[Slot[Loaded]]]:
        """Bring all these packs in, or none, and keep them until the block ends.

        Raises BudgetError when there are not enough free slots for all of them; then nothing has changed. Raises
        PackUnloadable when the loader refuses one; then the slots are as before, but for packs evicted to make room.
        """
        if not self.can_hold(pack_ids):
            missing = [pack_id for pack_id in pack_ids if self._find(pack_id) is None]
            busy = sum(slot.holds > 0 for slot in self._slots)
            raise BudgetError(
                f"{', '.join(missing)} cannot be loaded beside what this turn and others use: {self.on_demand} slots, "
                f"{busy} busy; name fewer packs or raise slots"
            )
        held: list[Slot[Loaded]] = []
        try:
            for pack_id in pack_ids:  # those already here first, lest one of them makes room for another
                if (slot := self._find(pack_id)) is not None:
                    slot.holds += 1
                    held.append(slot)
            for pack_id in pack_ids:
                if self._find(pack_id) is None:
                    held.append(self._bring(pack_id))
            self._clock += 1
            by_id = {slot.pack_id: slot for slot in held}
            for slot in held:
                slot.used = self._clock
            yield [by_id[pack_id] for pack_id in pack_ids]
        finally:
            for slot in held:
                slot.holds -= 1

    def _find(self, pack_id: str) -> Slot[Loaded] | None:
        if pack_id in self.residents:
            return self.residents[pack_id]
        return next((slot for slot in self._slots if slot.pack_id == pack_id), None)

    def _bring(self, pack_id: str) -> Slot[Loaded]:
        free = [slot for slot in self._slots if slot.holds == 0]
        slot = min(free, key=lambda one: (one.pack_id is not None, one.used))
        old, slot.pack_id, slot.content = slot.content, None, None  # a failed load leaves the slot empty
        try:
            slot.content = self.load(pack_id, old)
        except ModularBaseError as error:
            raise PackUnloadable(pack_id, error) from error
        slot.pack_id = pack_id
        slot.holds += 1
        return slot
