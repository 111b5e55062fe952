"""Continuous batching: each step begins at most one waiting request and moves all running ones by a token.

Decides who runs when (in order of arrival, as packs can be held); what a turn does is `turn`'s.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Sequence_
from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modularbase_core.engine.advance import advance
from modularbase_core.engine.request import Request, Running
from modularbase_core.errors import InputError, PackUnloadable
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.prefetch import Prefetcher
from modularbase_core.packs.slots import Slots
from modularbase_core.sdk.events import TurnFinished
from modularbase_core.text.stream import TextStream
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.decode import Decoding
from modularbase_core.turn.draft import Ahead
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.route import Routes, force, stand_in, trim
from modularbase_core.turn.sample import PENALISED_TOKENS, Sampler
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Finished, Routed, Token
from modularbase_core.turn.understand import Understanding


class Engine:
    """Runs requests. max_running: sequences decoded in one call; max_tokens: of one prompt without tiers."""

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
        draft_tokens: int = 0,
        hooks: Hooks | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.prefetcher = prefetcher
        self.understanding, self.routes, self.slots, self.decoding = understanding, routes, slots, decoding
        self._tokenizer, self._fallback, self._hooks = tokenizer, fallback, hooks
        self._max_running, self.max_tokens, self._draft_tokens = max_running, max_tokens, draft_tokens
        self._stops = tokenizer.controls.stops
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []

    def submit(self, request: Request) -> Running:
        """Queue a request; raises InputError if its prompt is empty or longer than any sequence may be."""
        if not request.token_ids:
            raise InputError("the prompt has no tokens; write something in it")
        if len(request.token_ids) > self.max_tokens and request.sequence.tiers is None:
            raise InputError(
                f"the prompt has {len(request.token_ids)} tokens but {self.max_tokens} fit; "
                "shorten it or raise hot_tokens"
            )
        seen = [*request.sequence.seen, *self._content(request.token_ids)]
        sampling = request.sampling
        ahead = Ahead(self._draft_tokens, [*self._stops, *sampling.stop_token_ids])
        running = Running(request, Sampler(sampling, seen), TextStream(sampling.stop), ahead)
        self._waiting.append(running)
        self._wish(request.packs)
        return running

    def step(self) -> None:
        """Begin one waiting request, if there is room, and move every running one by a token.

        What goes wrong is kept for the caller of the request that it concerns.
        """
        self._begin_one()
        if not self._running:
            return
        batch = self._running
        try:
            logits = advance(self.decoding, batch)
        except BaseException as error:
            self._running = []
            for one in batch:
                self._fail(one, error, one.request.sequence.fused)
            if isinstance(error, Exception):
                return
            raise
        for one in batch:
            one.token_id = -1  # it is in the caches now
        for one, row in zip(batch, logits, strict=True):
            try:
                self._take(one, row)
            except Exception as error:
                self._fail(one, error, one.request.sequence.fused)
        self._running = [one for one in batch if not one.finished]

    def stream(self, request: Request) -> Iterator[Event]:
        """Run a request to its end and yield its events; closing the iterator cancels it."""
        running = self.submit(request)
        try:
            while True:
                while running.events:
                    yield running.events.popleft()
                if running.error is not None:
                    raise running.error
                if running.finished:
                    return
                self.step()
        finally:
            self.cancel(running)

    def run_all(self, requests: Sequence_[Request]) -> list[list[Event]]:
        """Run several requests together to their ends; return each one's events, or raise the first error."""
        running = [self.submit(request) for request in requests]
        try:
            while not all(one.finished for one in running):
                self.step()
        finally:
            for one in running:
                self.cancel(one)
        for one in running:
            if one.error is not None:
                raise one.error
        return [list(one.events) for one in running]

    def cancel(self, running: Running) -> None:
        """End a request; what it has said stays in its sequence."""
        if not running.finished:
            self._finish(running, "cancelled")
        self._waiting = deque(one for one in self._waiting if one is not running)
        self._running = [one for one in self._running if one is not running]

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, and cancel what runs on it: its pages go back to the base's pool and the packs'."""
        for one in [*self._waiting, *self._running]:
            if one.request.sequence is sequence:
                self.cancel(one)
        self.decoding.release(sequence)
        for pack in self.slots.contents():
            pack.forget(sequence)

    def close(self) -> None:
        """End what runs in the background; a later request begins it again."""
        if self.prefetcher is not None:
            self.prefetcher.close()
        self.slots.tell()

    def _begin_one(self) -> None:
        if not self._waiting or len(self._running) >= self._max_running:
            return
        one = self._waiting[0]
        sequence = one.request.sequence
        try:
            if not one.begun:
                self._start(one)
            if one.unread:
                self._read(one)
                return
            if not one.understood:
                self._understand(one)
            if not self._hold(one):
                return  # another request's packs fill the slots; this one is next when they are free
            active = [sequence, *(other.request.sequence for other in self._running)]
            for pack in one.placed.values():
                pack.make_room(active)
            logits = self.decoding.prefill(sequence, one.placed)
            self._waiting.popleft()
            sequence.seen.extend(self._content(one.request.token_ids))
            route = sequence.route
            notes = (*route.notes, *self._faults(sequence))
            one.events.append(Routed(route.packs, route.scores, notes, route.abstained))
            self._take(one, logits)
        except BaseException as error:
            self._waiting = deque(other for other in self._waiting if other is not one)
            if not one.events and not one.has_read:  # no answer came of it: as if it had never been asked
                self._fail(one, error, one.start)
                sequence.pending[:] = one.kept
            else:
                self._fail(one, error, sequence.fused)
            if isinstance(error, Exception):
                return
            raise
        if not one.finished:
            self._running.append(one)

    def _start(self, one: Running) -> None:
        """Note where the turn begins. Of a turn that goes past a block's end, with tiers, the first part is read."""
        sequence = one.request.sequence
        one.start, one.kept = sequence.table.tokens, tuple(sequence.pending)
        one.begun, one.since = True, time.perf_counter()
        one.before = sequence.route.ids
        whole = [*sequence.pending, *one.request.token_ids]
        block = sequence.table.window.block_tokens
        if sequence.stretch(len(whole)) < len(whole):
            last = (one.start + len(whole) - 1) // block * block
            one.unread = whole[: last - one.start]
        self.decoding.sharing.adopt(sequence, whole)
        del one.unread[: sequence.table.tokens - one.start]

    def read(self, sequence: Sequence, token_ids: Sequence_[int]) -> Iterator[int]:
        """Take tokens in without an answer, block by block, through general chat; yield how many are through.

        What is pending comes first, and stays pending where its block fails. Where it is left, or fails, the sequence
        stands at the end of a block.
        """
        kept, first = tuple(sequence.pending), sequence.table.tokens
        token_ids = [*kept, *token_ids]
        self.decoding.sharing.adopt(sequence, token_ids)
        sequence.seen.extend(self._content(token_ids[: sequence.table.tokens - first]))
        while (done := sequence.table.tokens - first) < len(token_ids):
            try:
                self._read_block(sequence, token_ids[done:], (self._fallback,))
            finally:
                sequence.pending[:] = kept[sequence.table.tokens - first :]
            yield sequence.table.tokens - first

    def _read(self, one: Running) -> None:
        """Read the next block of a long turn; others that run go on between two of them."""
        sequence = one.request.sequence
        packs = one.request.packs if one.request.packs and self.slots.can_hold(one.request.packs) else (self._fallback,)
        del one.unread[: self._read_block(sequence, one.unread, packs)]
        one.has_read = True
        sequence.pending[:] = one.kept[sequence.table.tokens - one.start :]
        self._foresee(one)

    def _read_block(self, sequence: Sequence, token_ids: Sequence_[int], packs: Sequence_[str]) -> int:
        block = sequence.table.window.block_tokens
        count = min(len(token_ids), block - sequence.table.tokens % block)
        sequence.route = force(packs)
        try:
            with self.slots.hold(sequence.route.ids) as slots:
                placed = {slot.pack_id or "": slot.content for slot in slots if slot.content is not None}
                active = [sequence, *(other.request.sequence for other in self._running)]
                for pack in placed.values():
                    pack.make_room(active)
                self.understanding.ingest(sequence, token_ids[:count])
                self.decoding.prefill(sequence, placed)
        except BaseException:
            self.decoding.sharing.rewind(sequence, sequence.fused)
            raise
        sequence.seen.extend(self._content(token_ids[:count]))
        return count

    def _message(self, one: Running, token: int) -> tuple[int, Sequence_[int]]:
        """Return the message of a turn as far as it is hot when `token` comes: where it begins, and its tokens."""
        offset = one.start + len(one.kept)
        first, end = (offset + place for place in one.request.question)
        recent = one.request.sequence.table.first_recent(token)
        if recent > one.request.sequence.table.window.sink_tokens:  # else all of it is hot
            first = max(first, recent)
        return first, one.request.token_ids[first - offset : max(first, end) - offset]

    def _foresee(self, one: Running) -> bool:
        """Have the packs copied that the beginning of a long message asks for, while the rest of it is understood."""
        if self.prefetcher is None or one.request.packs or one.foreseen:
            return False
        sequence = one.request.sequence
        first, message = self._message(one, sequence.table.tokens)
        likely = self.routes.lean(sequence, first, message[: max(0, sequence.table.tokens - first)])
        self._wish(likely)
        one.foreseen = bool(likely)
        return one.foreseen

    def _understand(self, one: Running) -> None:
        request, sequence = one.request, one.request.sequence
        token_ids = [*one.kept, *request.token_ids]
        begun = sequence.table.tokens  # later than the turn, where its first part was read
        first, message = self._message(one, begun)
        early = partial(self._foresee, one) if self.prefetcher is not None and not request.packs else None
        sequence.pending.clear()
        self.understanding.ingest(sequence, token_ids[begun - one.start :], early)
        again = self.decoding.remembering.answer(sequence, begun, message)
        self.understanding.ingest(sequence, token_ids[again - one.start :])
        one.understood = True
        route = force(request.packs) if request.packs else self.routes.choose(sequence, first, message, request.message)
        sequence.route = trim(route, self.slots.fitting(route.ids), self.slots.on_demand)
        if self.prefetcher is not None:
            self.prefetcher.begun(one.before, sequence.route.ids)
        if not self.slots.can_hold(sequence.route.ids):
            self._wish(sequence.route.ids)  # as many of them as there is room for now

    def _fail(self, one: Running, error: BaseException, tokens: int) -> None:
        """End a request by an error, its sequence taken back to the first `tokens` tokens."""
        sequence = one.request.sequence
        if one.begun:
            self.decoding.sharing.rewind(sequence, tokens)
            for pack in self.slots.contents():
                pack.rewind(sequence)
        if one.token_id >= 0:
            sequence.pending.append(one.token_id)
            one.token_id = -1
        one.finished = True
        one.error = error if isinstance(error, Exception) else None
        one.holds.close()

    def _hold(self, one: Running) -> bool:
        """Bring the route's packs in, or others for those that cannot be loaded; False where they must wait."""
        sequence = one.request.sequence
        while self.slots.can_hold(sequence.route.ids) or not self._running:
            try:
                with ExitStack() as stack:
                    slots = stack.enter_context(self.slots.hold(sequence.route.ids))
                    one.placed = {slot.pack_id or "": slot.content for slot in slots if slot.content is not None}
                    one.holds = stack.pop_all()
                return True
            except PackUnloadable as error:
                one.unloadable.add(error.pack_id)
                by = self._substitute(error.pack_id, one.unloadable)
                note = f"{error}; {' and '.join(by)} {'answers' if len(by) == 1 else 'answer'} in its place"
                route = stand_in(sequence.route, error.pack_id, by, note)
                sequence.route = trim(route, self.slots.fitting(route.ids), self.slots.on_demand)
        return False

    def _substitute(self, pack_id: str, unloadable: Collection[str]) -> list[str]:
        """Ask plugins who answers for a pack that cannot be loaded; general chat, which is always there, by default."""
        candidates = [pack for pack in self.routes.packs if pack not in unloadable]
        named = self._hooks.fallback(pack_id, candidates) if self._hooks is not None else []
        return named or [self._fallback]

    def _take(self, one: Running, logits: NDArray[np.float32]) -> None:
        sampled = one.sampler.sample(logits)
        sampling = one.request.sampling
        one.generated += 1
        if sampled.token_id in self._stops or sampled.token_id in sampling.stop_token_ids:
            self._finish(one, "stop")
            return
        text = one.stream.feed(self._tokenizer.token_bytes(sampled.token_id))
        one.token_id = sampled.token_id
        one.request.sequence.seen.extend(self._content([sampled.token_id]))
        one.events.append(Token(text, sampled.token_id, sampled.logprob, sampled.top))
        if one.stream.stop is not None:
            one.token_id = -1  # it completed the stop string, which is not part of the answer
            self._finish(one, "stop")
        elif one.generated >= sampling.max_tokens:
            self._finish(one, "length")

    def _finish(self, one: Running, reason: str) -> None:
        if one.token_id >= 0:  # told, so the conversation goes on from it
            one.request.sequence.pending.append(one.token_id)
            one.token_id = -1
        text = "" if one.stream.stop is not None else one.stream.finish()
        prompt = len(one.request.token_ids)
        if one.generated:
            self.decoding.sharing.keep(one.request.sequence)
        one.finished = True
        one.holds.close()
        if self._hooks is not None and one.begun:
            route = one.request.sequence.route
            packs, seconds = {pack.id: pack.weight for pack in route.packs}, time.perf_counter() - one.since
            self._hooks.turn_finished(TurnFinished(packs, route.scores, reason, prompt, one.generated, seconds))
        shared = one.request.sequence.beginning.shared if not one.start else 0
        faults = self._faults(one.request.sequence)
        drafts = one.ahead.drafted, one.ahead.accepted
        one.events.append(Finished(reason, text, prompt, one.generated, one.stream.stop, faults, shared, *drafts))
        if self.prefetcher is not None and one.begun:
            self.prefetcher.finished(one.request.sequence.route.ids, self._waiting_packs())

    def _wish(self, pack_ids: Sequence_[str]) -> None:
        """Have packs brought in that a request will need."""
        if self.prefetcher is not None:
            self.prefetcher.wish(pack_ids, self._waiting_packs())

    def _waiting_packs(self) -> set[str]:
        """Name the packs that waiting requests are known to need."""
        known = (other.request.sequence.route.ids if other.begun else other.request.packs for other in self._waiting)
        return {pack_id for pack_ids in known for pack_id in pack_ids}

    def _faults(self, sequence: Sequence) -> tuple[str, ...]:
        """Return what went wrong in plugins, or in what a sequence keeps, since it was last asked for."""
        plugins = self._hooks.take_faults() if self._hooks is not None else ()
        tiers = sequence.tiers.take_faults() if sequence.tiers is not None else ()
        return (*plugins, *self.decoding.take_faults(), *tiers)

    def _content(self, token_ids: Sequence_[int]) -> list[int]:
        """Return the last ids that stand for text: a repetition penalty on <|end|> would draw answers out."""
        return [token_id for token_id in token_ids[-PENALISED_TOKENS:] if self._tokenizer.token_bytes(token_id)]
