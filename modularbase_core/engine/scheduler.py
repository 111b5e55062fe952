"""Continuous batching: each step begins at most one waiting request and moves all running ones by a token.

Decides who runs when (in order of arrival, as packs can be held); what a turn does is `turn`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Sequence_
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from modularbase_core.engine.request import Request, Running
from modularbase_core.errors import InputError, ModularBaseError
from modularbase_core.packs.slots import Slots
from modularbase_core.text.stream import TextStream
from modularbase_core.text.template import END
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.decode import Decoding
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.route import Routes, force
from modularbase_core.turn.sample import Sampler
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Finished, Route, Routed, RoutedPack, Token
from modularbase_core.turn.understand import Understanding


class Engine:
    """Runs requests. max_running: sequences decoded in one call; max_tokens: of one prompt."""

    def __init__(
        self,
        understanding: Understanding,
        routes: Routes,
        slots: Slots[PlacedPack],
        decoding: Decoding,
        tokenizer: Tokenizer,
        *,
        fallback: str,
        max_running: int,
        max_tokens: int,
    ) -> None:
        self.understanding, self.routes, self.slots, self.decoding = understanding, routes, slots, decoding
        self._tokenizer, self._fallback = tokenizer, fallback
        self._max_running, self._max_tokens = max_running, max_tokens
        self._end = tokenizer.control(END)
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []

    def submit(self, request: Request) -> Running:
        """Queue a request; raises InputError if its prompt is longer than any sequence may be."""
        if len(request.token_ids) > self._max_tokens:
            raise InputError(
                f"the prompt has {len(request.token_ids)} tokens but {self._max_tokens} fit; "
                "shorten it or raise hot_tokens"
            )
        sequence = request.sequence
        sequence.seen.update(request.token_ids)
        running = Running(request, Sampler(request.sampling, sequence.seen), TextStream(request.sampling.stop))
        self._waiting.append(running)
        return running

    def step(self) -> None:
        """Begin one waiting request, if there is room, and move every running one by a token."""
        self._begin_one()
        if not self._running:
            return
        placed = {pack_id: pack for one in self._running for pack_id, pack in one.placed.items()}
        sequences = [one.request.sequence for one in self._running]
        logits = self.decoding.step(sequences, [one.token_id for one in self._running], placed)
        for one, row in zip(list(self._running), logits, strict=True):
            self._take(one, row)
        self._running = [one for one in self._running if not one.finished]

    def stream(self, request: Request) -> Iterator[Event]:
        """Run a request to its end and yield its events; closing the iterator cancels it."""
        running = self.submit(request)
        try:
            while not running.finished or running.events:
                yield from running.events
                running.events.clear()
                if not running.finished:
                    self.step()
        finally:
            self.cancel(running)

    def cancel(self, running: Running) -> None:
        """End a request; what it has said stays in its sequence."""
        if not running.finished:
            self._finish(running, "cancelled")
        self._waiting = deque(one for one in self._waiting if one is not running)
        self._running = [one for one in self._running if one is not running]

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence: its pages go back to the base's pool and the packs'."""
        self.decoding.release(sequence)
        for pack in self.slots.contents():
            pack.forget(sequence)

    def _begin_one(self) -> None:
        if not self._waiting or len(self._running) >= self._max_running:
            return
        one = self._waiting[0]
        sequence = one.request.sequence
        if not one.begun:
            self._understand(one)
        if not self.slots.can_hold(sequence.route.ids) and self._running:
            return  # another request's packs fill the slots; this one is next when they are free
        self._waiting.popleft()
        try:
            self._hold(one)
            logits = self.decoding.prefill(sequence, one.placed)
        except BaseException:
            one.holds.close()
            one.finished = True
            raise
        one.events.append(Routed(sequence.route.packs, sequence.route.scores, sequence.route.notes))
        self._take(one, logits)
        if not one.finished:
            self._running.append(one)

    def _understand(self, one: Running) -> None:
        request, sequence = one.request, one.request.sequence
        start = sequence.table.tokens + len(sequence.pending)
        try:
            self.understanding.ingest(sequence, [*sequence.pending, *request.token_ids])
        except ModularBaseError:
            self._waiting.popleft()
            one.finished = True
            raise
        sequence.pending.clear()
        one.begun = True
        if request.packs:
            sequence.route = force(request.packs)
        else:
            first, end = request.question
            sequence.route = self.routes.choose(sequence, start + first, start + end)

    def _hold(self, one: Running) -> None:
        """Bring the route's packs in; one that cannot be loaded gives way to general chat, unless it was named."""
        sequence = one.request.sequence
        while True:
            try:
                with ExitStack() as stack:
                    slots = stack.enter_context(self.slots.hold(sequence.route.ids))
                    one.placed = {slot.pack_id or "": slot.content for slot in slots if slot.content is not None}
                    one.holds = stack.pop_all()
                return
            except ModularBaseError as error:
                if one.request.packs or sequence.route.ids == (self._fallback,):
                    raise
                note = f"{', '.join(sequence.route.ids)} cannot be used ({error}); {self._fallback} answers"
                sequence.route = Route((RoutedPack(self._fallback, 1.0, None),), sequence.route.scores, (note,))

    def _take(self, one: Running, logits: NDArray[np.float32]) -> None:
        sampled = one.sampler.sample(logits)
        sampling = one.request.sampling
        one.generated += 1
        if sampled.token_id == self._end or sampled.token_id in sampling.stop_token_ids:
            self._finish(one, "stop")
            return
        text = one.stream.feed(self._tokenizer.token_bytes(sampled.token_id))
        one.token_id = sampled.token_id
        one.request.sequence.seen.add(sampled.token_id)
        one.events.append(Token(text, sampled.token_id, sampled.logprob, sampled.top))
        if one.stream.stop is not None:
            self._finish(one, "stop")
        elif one.generated >= sampling.max_tokens:
            one.request.sequence.pending.append(sampled.token_id)
            self._finish(one, "length")

    def _finish(self, one: Running, reason: str) -> None:
        prompt = len(one.request.token_ids)
        text = "" if one.stream.stop is not None else one.stream.finish()
        one.events.append(Finished(reason, text, prompt, one.generated, one.stream.stop))
        one.finished = True
        one.holds.close()


def run_all(engine: Engine, requests: Sequence_[Request]) -> list[list[Event]]:
    """Run several requests together to their ends; return each one's events."""
    running = [engine.submit(request) for request in requests]
    while not all(one.finished for one in running):
        engine.step()
    return [one.events for one in running]
