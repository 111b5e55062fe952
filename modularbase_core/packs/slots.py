"""Where packs live on the device: residents for good, the rest by turns in a few slots of fixed size.

Decides who may be evicted (never a resident, a pin, one in use) and keeps threads apart: slots are taken under a
lock, filled outside it. How weights get into a slot is the loader's, who of the evictable goes is `policy`'s.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Condition
from typing import Generic, TypeVar

from modularbase_core.errors import BudgetError, ModularBaseError, PackUnloadable
from modularbase_core.packs.policy import Eviction, LeastRecentlyUsed

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Loaded]):
    """A pack that was found fit to be loaded. place(number of the slot, None for a resident) copies it there."""

    size_bytes: int
    place: Callable[[int | None], Loaded]


@dataclass(slots=True)
class Slot(Generic[Loaded]):
    """One place: what is in it or coming in, how many turns hold it, and when it was last used.

    number: None for a resident's. content: None while the slot is empty or being filled. leaving: who was in it, until
    the filling begins.
    """

    number: int | None
    pack_id: str | None = None
    content: Loaded | None = None
    leaving: tuple[str, Loaded] | None = None
    holds: int = 0
    used: int = 0

    @property
    def is_loading(self) -> bool:
        """Whether a pack is on its way into it."""
        return self.pack_id is not None and self.content is None


class Slots(Generic[Loaded]):
    """Residents and on-demand slots. All methods may be called from any thread.

    prepare(pack id): check and open a pack, or raise, before anything is evicted for it. on_loaded(pack id, bytes,
    seconds, whether prefetched) and on_evicted(pack id, successor) are called by `hold`, `pin` and `tell`, in their
    caller's thread.
    """

    def __init__(
        self,
        prepare: Callable[[str], Prepared[Loaded]],
        on_demand: int,
        *,
        policy: Eviction | None = None,
        on_loaded: Callable[[str, int, float, bool], None] | None = None,
        on_evicted: Callable[[str, str], None] | None = None,
    ) -> None:
        self.on_demand = on_demand
        self.residents: dict[str, Slot[Loaded]] = {}
        self._prepare, self._policy = prepare, policy or LeastRecentlyUsed()
        self._on_loaded, self._on_evicted = on_loaded, on_evicted
        self._slots: list[Slot[Loaded]] = [Slot(number) for number in range(on_demand)]
        self._pins: set[str] = set()
        self._clock = 0
        self._untold: deque[Callable[[], None]] = deque()
        self._changed = Condition()  # also the lock over everything here

    def add_resident(self, pack_id: str) -> None:
        """Load a pack that is never evicted."""
        slot: Slot[Loaded] = Slot(None, pack_id)
        self._fill(slot, self._prepare(pack_id), prefetched=False)
        self.residents[pack_id] = slot

    def loaded(self) -> list[str]:
        """Return the ids of the packs in place, residents first, then the most recently used."""
        with self._changed:
            ordered = sorted(self._slots, key=lambda slot: -slot.used)
            return [*self.residents, *(slot.pack_id for slot in ordered if slot.pack_id and not slot.is_loading)]

    def contents(self) -> list[Loaded]:
        """Return what is in place."""
        with self._changed:
            places = [*self.residents.values(), *self._slots]
            return [slot.content for slot in places if slot.content is not None]

    @property
    def pinned(self) -> frozenset[str]:
        """The packs that are never evicted though they are no residents."""
        with self._changed:
            return frozenset(self._pins)

    def can_hold(self, pack_ids: Sequence[str]) -> bool:
        """Tell whether `hold` would find room now, without waiting for others to let go."""
        with self._changed:
            return len(self._missing(pack_ids)) <= len(self._evictable(pack_ids))

    def fitting(self, pack_ids: Sequence[str]) -> list[str]:
        """Return those of `pack_ids` that could be held together if nothing else were: the first ones where too many.

        Residents and pinned packs take no free slot.
        """
        with self._changed:
            standing = {*self.residents, *self._pins}
            taking = [pack_id for pack_id in dict.fromkeys(pack_ids) if pack_id not in standing]
            return [pack_id for pack_id in pack_ids if pack_id not in taking[self.on_demand - len(self._pins) :]]

    @contextmanager
    def hold(self, pack_ids: Sequence[str]) -> Iterator[list[Slot[Loaded]]]:
        """Bring all these packs in, or none, and keep them until the block ends; one on its way in is waited for.

        Raises BudgetError when there are not enough free slots for all of them; then nothing has changed. Raises
        PackUnloadable when one cannot be loaded: nothing has changed if it could not be prepared, and its slot is
        empty if it could not be copied.
        """
        held = self._take(pack_ids)
        try:
            self.tell()
            yield [held[pack_id] for pack_id in pack_ids]
        finally:
            self._let_go(held.values())

    def pin(self, pack_id: str) -> None:
        """Bring a pack in and never evict it, until `unpin`.

        Raises BudgetError if no slot would be left for others, else as `hold` does.
        """
        if pack_id in self.residents:
            return
        with self._changed:
            if len(self._pins | {pack_id}) >= self.on_demand:
                raise BudgetError(
                    f"{pack_id} cannot be pinned: of {self.on_demand} slots one must stay free for other packs and "
                    f"{len(self._pins)} are pinned already; unpin a pack or raise slots"
                )
            known = pack_id in self._pins
            self._pins.add(pack_id)
        try:
            with self.hold([pack_id]):
                pass
        except BaseException:
            if not known:
                self.unpin(pack_id)
            raise

    def unpin(self, pack_id: str) -> None:
        """Let a pack be evicted again; one that is not pinned stays so."""
        with self._changed:
            self._pins.discard(pack_id)

    def prefetch(self, pack_id: str, keep: Collection[str] = ()) -> bool:
        """Bring a pack in that nobody holds yet, in the calling thread; tell whether it was brought in now.

        It is not where it would have to evict a pack that is held, pinned or one of `keep`. Raises as `hold` does.
        """
        with self._changed:
            if self._find(pack_id) is not None or not self._evictable(keep, idle=True):
                return False
        prepared = self._prepared(pack_id)
        with self._changed:
            free = self._evictable(keep, idle=True)
            if self._find(pack_id) is not None or not free:
                return False
            slot = self._evict_one(free, pack_id)
        self._fill(slot, prepared, prefetched=True)
        return True

    def tell(self) -> None:
        """Call the callbacks for what has been loaded and evicted since they were last called."""
        while self._untold:
            try:
                self._untold.popleft()()
            except IndexError:  # another thread told it
                return

    def _take(self, pack_ids: Sequence[str]) -> dict[str, Slot[Loaded]]:
        """Reserve slots for all packs at once, then fill those that lack theirs."""
        prepared: dict[str, Prepared[Loaded]] = {}
        taken: dict[str, Slot[Loaded]] = {}
        try:
            while True:
                with self._changed:
                    self._wait_for_loads(pack_ids)
                    missing = self._missing(pack_ids)
                    if all(pack_id in prepared for pack_id in missing):
                        self._reserve(pack_ids, missing, taken)
                        break
                for pack_id in missing:
                    if pack_id not in prepared:
                        prepared[pack_id] = self._prepared(pack_id)
            for pack_id in missing:
                self._fill(taken[pack_id], prepared[pack_id], prefetched=False)
        except BaseException:
            with self._changed:
                for slot in taken.values():
                    if slot.is_loading:  # reserved here: others' loads were waited for
                        slot.pack_id, slot.content = slot.leaving or (None, None)
                        slot.leaving = None
            self._let_go(taken.values())
            raise
        with self._changed:
            self._policy.used([pack_id for pack_id in dict.fromkeys(pack_ids) if pack_id not in self.residents])
            self._clock += 1
            for slot in taken.values():
                slot.used = self._clock
        return taken

    def _wait_for_loads(self, pack_ids: Sequence[str]) -> None:
        """Wait while a load that is under way decides whether there is room; raise BudgetError if there is none."""
        while True:
            missing = self._missing(pack_ids)
            if len(missing) > len(self._evictable(pack_ids)):
                busy = self.on_demand - len(self._evictable(()))
                raise BudgetError(
                    f"{', '.join(missing)} cannot be loaded beside what this turn and others use: {self.on_demand} "
                    f"slots, {busy} busy; name fewer packs or raise slots"
                )
            coming = any(slot.is_loading and slot.pack_id in pack_ids for slot in self._slots)
            if not coming and len(missing) <= len(self._evictable(pack_ids, idle=True)):
                return
            self._changed.wait()

    def _reserve(self, pack_ids: Sequence[str], missing: Sequence[str], taken: dict[str, Slot[Loaded]]) -> None:
        for pack_id in dict.fromkeys(pack_ids):  # those already here first, lest one of them makes room for another
            if (slot := self._find(pack_id)) is not None:
                slot.holds += 1
                taken[pack_id] = slot
        for pack_id in missing:
            slot = self._evict_one(self._evictable((), idle=True), pack_id)
            slot.holds += 1
            taken[pack_id] = slot

    def _let_go(self, slots: Collection[Slot[Loaded]]) -> None:
        with self._changed:
            for slot in slots:
                slot.holds -= 1
            self._changed.notify_all()

    def _evict_one(self, free: Sequence[Slot[Loaded]], successor: str) -> Slot[Loaded]:
        """Choose one of the `free` slots and note who leaves and who comes in."""
        slot = next((slot for slot in free if slot.pack_id is None), None)
        if slot is None:
            by_id = {slot.pack_id: slot for slot in free if slot.pack_id is not None}
            slot = by_id[self._policy.victim(list(by_id))]
            if slot.pack_id is not None and slot.content is not None:
                slot.leaving = slot.pack_id, slot.content
        slot.pack_id, slot.content = successor, None
        return slot

    def _fill(self, slot: Slot[Loaded], prepared: Prepared[Loaded], *, prefetched: bool) -> None:
        """Copy a pack into a slot that was emptied for it; a slot that could not be filled is empty."""
        assert slot.pack_id is not None
        pack_id, begun = slot.pack_id, time.perf_counter()
        content: Loaded | None = None
        if slot.leaving is not None and self._on_evicted is not None:
            self._untold.append(partial(self._on_evicted, slot.leaving[0], pack_id))
        slot.leaving = None
        try:
            content = prepared.place(slot.number)
        except ModularBaseError as error:
            raise PackUnloadable(pack_id, error) from error
        finally:
            with self._changed:
                slot.content = content
                if content is None:
                    slot.pack_id = None
                self._changed.notify_all()
        if self._on_loaded is not None and slot.number is not None:
            seconds = time.perf_counter() - begun
            self._untold.append(partial(self._on_loaded, pack_id, prepared.size_bytes, seconds, prefetched))

    def _prepared(self, pack_id: str) -> Prepared[Loaded]:
        try:
            return self._prepare(pack_id)
        except ModularBaseError as error:
            raise PackUnloadable(pack_id, error) from error

    def _find(self, pack_id: str) -> Slot[Loaded] | None:
        if pack_id in self.residents:
            return self.residents[pack_id]
        return next((slot for slot in self._slots if slot.pack_id == pack_id), None)

    def _missing(self, pack_ids: Sequence[str]) -> list[str]:
        return [pack_id for pack_id in dict.fromkeys(pack_ids) if self._find(pack_id) is None]

    def _evictable(self, keep: Collection[str], *, idle: bool = False) -> list[Slot[Loaded]]:
        """List the slots whose pack, if any, may go and is none of `keep`; idle: and that none is coming into."""
        return [
            slot
            for slot in self._slots
            if slot.holds == 0
            and (slot.pack_id is None or (slot.pack_id not in keep and slot.pack_id not in self._pins))
            and not (idle and slot.is_loading)
        ]
