"""Packs brought in before a turn waits for them, by one thread that copies while others compute.

Decides what is wished for: the packs of a route that is known before its turn begins, and after a turn those that
tend to follow. What may be evicted for them is decided in `slots`; a failure is left for the turn to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from modularbase_core.errors import ModularBaseError
from modularbase_core.packs.history import History
from modularbase_core.packs.slots import Slots


class Prefetcher:
    """The background of some slots. runner: makes what runs the copies, by default a thread of its own.

    A new wish takes the place of one that has not begun. After `close` a new wish begins a new thread.
    """

    # Any: what a slot holds is of no concern here
    def __init__(
        self, slots: Slots[Any], history: History | None = None, runner: Callable[[], Executor] | None = None
    ) -> None:
        self._slots, self._history = slots, history or History()
        self._make_runner = runner or (lambda: ThreadPoolExecutor(1, "prefetch"))
        self._runner: Executor | None = None
        self._latest: tuple[str, ...] = ()
        self._newest = 0
        self._running: Future[None] | None = None

    def wish(self, pack_ids: Sequence[str], keep: Collection[str] = ()) -> None:
        """Bring these packs in, the heaviest first, as far as none of `keep` or of themselves has to go for them."""
        if pack_ids:
            self._start([(pack_id, {*keep, *pack_ids}) for pack_id in pack_ids])

    def finished(self, pack_ids: Sequence[str], waiting: Collection[str] = ()) -> None:
        """Hear that a turn of these packs ended, and bring in who tends to follow.

        What was just used, what `waiting` turns need and whoever is likelier stays.
        """
        if pack_ids:
            likely = self._history.likely(pack_ids[0])[: self._slots.on_demand]
            self._start([(pack_id, {*pack_ids, *waiting, *likely[:rank]}) for rank, pack_id in enumerate(likely)])

    def begun(self, before: Sequence[str], pack_ids: Sequence[str]) -> None:
        """Hear that a turn followed one of `before`; where a conversation has none, the latest of all is meant."""
        before = before or self._latest
        if before and pack_ids:
            self._history.observe(before[0], pack_ids[0])
        self._latest = tuple(pack_ids)

    def background(self, work: Callable[[], None]) -> None:
        """Do something else in the same thread, before what is wished for later."""
        self._submit([work])

    def wait(self) -> None:
        """Return when nothing is under way."""
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Forget what has not begun, wait for what has, end the thread and keep the history."""
        self._newest += 1
        if self._runner is not None:
            self._runner.shutdown()
            self._runner = None
        self._history.save()
        self.wait()  # raises what a copy raised, were it not ours
        self._running = None

    def _start(self, wishes: Sequence[tuple[str, set[str]]]) -> None:
        self._newest += 1
        number = self._newest
        standing = set(self._slots.loaded())
        absent = [(pack_id, keep) for pack_id, keep in wishes if pack_id not in standing]
        if not absent:
            return

        def bring(pack_id: str, keep: set[str]) -> None:
            if number == self._newest:  # else overtaken
                self._slots.prefetch(pack_id, keep)

        self._submit([partial(bring, *one) for one in absent])

    def _submit(self, works: Sequence[Callable[[], None]]) -> None:
        def run() -> None:
            for work in works:
                # the turn that needs a pack meets the same failure, and tells it
                with suppress(ModularBaseError, OSError, MemoryError):
                    work()

        if self._runner is None:
            self._runner = self._make_runner()
        self._running = self._runner.submit(run)
