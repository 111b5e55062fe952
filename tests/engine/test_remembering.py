"""Conversations longer than the window: what leaves goes cold, what is asked for comes back, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feeding import difference, fed, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packs import WINDOW

from modularbase_core.context.cold import ColdStore
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import SessionError
from modularbase_core.host import Parts
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Finished, Routed, Token

LONG = random_tokens(6 * WINDOW.trained_tokens)
PLAIN = [token for token in LONG if token < 8000]
GREEDY = SamplingConfig(temperature=0, max_tokens=6)
PagesOf = Callable[..., Parts]


@pytest.fixture(scope="module")
def parts(tiny_packs: dict[str, Path], parts_of: PagesOf) -> Parts:
    return parts_of(tiny_packs, hot_tokens=2048)


@pytest.fixture(scope="module")
def whole(parts: Parts) -> np.ndarray:
    return after(parts.engine(), parts.sequence(), [len(LONG)])


def after(engine: Engine, sequence: Sequence, pieces: list[int]) -> np.ndarray:
    return fed(engine, sequence, LONG, "python_code", pieces)


def ask(sequence: Sequence, token_ids: list[int], **more: object) -> Request:
    question = (0, len(token_ids))
    chosen = {"packs": ("general_chat",), "sampling": GREEDY, **more}
    return Request(sequence=sequence, token_ids=token_ids, question=question, **chosen)


def read(engine: Engine, sequence: Sequence, token_ids: list[int]) -> None:
    for _ in engine.read(sequence, token_ids):
        pass


def answer(engine: Engine, request: Request) -> list[int]:
    (events,) = engine.run_all([request])
    return [event.token_id for event in events if isinstance(event, Token)]


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.sampled_from([7, 64, 256]))
def test_any_chunking_brings_the_same_pages_back_and_changes_no_bit(
    parts: Parts, whole: np.ndarray, pieces: list[int], rows: int
) -> None:
    rest = len(LONG) - sum(pieces)
    chunked = [*pieces, rest] if rest > 0 else [len(LONG)]
    engine, sequence = parts.engine(prefill_rows=rows), parts.sequence()
    assert difference(after(engine, sequence, chunked), whole) == 0
    assert sequence.table.recalls


def test_decode_brings_the_same_pages_back_and_changes_no_bit(parts: Parts, whole: np.ndarray) -> None:
    decoded = after(parts.engine(), parts.sequence(), [33] + [1] * (len(LONG) - 33))
    assert difference(decoded, whole) == 0


def test_what_was_brought_back_is_seen(parts: Parts, whole: np.ndarray) -> None:
    forgetful = replace(parts.sequence(), tiers=None)
    assert difference(after(parts.engine(), forgetful, [len(LONG)]), whole) > 1e-3


def test_the_hot_pages_stay_few_and_all_come_back(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    pool = engine.decoding._hot.pool
    free = pool.free_count
    held = [len(sequence.table.page_ids) for _ in engine.read(sequence, LONG * 3)]
    assert max(held) <= WINDOW.trained_tokens // PAGE_TOKENS + 1
    assert sequence.table.tokens == 3 * len(LONG)
    sizes = sequence.tiers.measure(sequence.table)
    sequence.tiers.flush()
    assert sum(sequence.tiers.measure(sequence.table).cold_tokens.values()) + sizes.hot_tokens >= 3 * len(LONG)
    engine.release(sequence)
    assert pool.free_count + engine.decoding.sharing.held_pages == free


def test_a_question_brings_back_the_pages_that_hold_its_words(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    words = [8001, 8002, 8003, 8004]
    read(engine, sequence, [*PLAIN[:160], *words, 77, 78, *PLAIN[160:]])
    answer(engine, ask(sequence, [5, 6, *words]))
    recalled = {one.token // PAGE_TOKENS: one.by for one in sequence.tiers.recalled}
    assert recalled[160 // PAGE_TOKENS] == "its words"
    assert 160 // PAGE_TOKENS in sequence.table.recalled(sequence.table.tokens - 1)


def test_a_pack_that_comes_later_takes_in_what_was_brought_back(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    read(engine, sequence, LONG)
    answer(engine, ask(sequence, LONG[100:108], packs=("python_code",)))
    late = next(pack for pack in engine.slots.contents() if pack.pack_id == "python_code").table(sequence)
    assert sequence.table.recalled(sequence.table.tokens - 1)
    assert not late.lacking(sequence.table.recalled(sequence.table.tokens - 1))


def test_an_evicted_pack_that_comes_back_sees_what_it_would_have_seen(parts: Parts) -> None:
    engine = parts.engine()
    answers = []
    for forget in (False, True):
        sequence = parts.sequence()
        read(engine, sequence, LONG[:300])
        answer(engine, ask(sequence, LONG[300:310], packs=("python_code",)))
        if forget:
            for pack in engine.slots.contents():
                pack.forget(sequence)
        with engine.slots.hold(["python_code"]) as slots:
            placed = {"python_code": slots[0].content}
            answers.append(engine.decoding.step([sequence], [9], placed) if not forget else None)
            if forget:
                slots[0].content.join(
                    sequence, sequence.fused, engine.understanding, engine.decoding._buffers, engine.decoding._max_rows
                )
                assert not slots[0].content.table(sequence).lacking(sequence.table.recalled(sequence.fused))
                answers[-1] = engine.decoding.step([sequence], [9], placed)
        engine.release(sequence)
    assert difference(answers[1], answers[0]) < 0.2  # not equal: it read the window's pages without those before them


def test_a_long_turn_is_read_and_others_go_on_between(parts: Parts) -> None:
    engine = parts.engine()
    long = engine.submit(ask(parts.sequence(), LONG * 4))
    other = engine.submit(ask(parts.sequence(), LONG[:20]))
    while not other.finished:
        engine.step()
    while not long.finished:
        engine.step()
    assert long.error is None
    assert isinstance(long.events[0], Routed)
    assert isinstance(long.events[-1], Finished)
    assert long.request.sequence.table.tokens >= 4 * len(LONG)


def test_a_fault_while_a_long_turn_is_read_leaves_what_was_read(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    reading = engine.submit(ask(sequence, LONG * 4))
    for _ in range(9):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoding._fusion, "logits", lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
        engine.step()
    assert isinstance(reading.error, RuntimeError)
    assert sequence.fused == sequence.table.tokens == 9 * WINDOW.block_tokens
    assert len(answer(engine, ask(sequence, LONG[:20]))) == GREEDY.max_tokens


@pytest.mark.parametrize("kind", ["text", "long turn"])
def test_what_was_told_but_not_read_is_not_lost_where_the_first_block_fails(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine = parts.engine()
    calm, other = parts.sequence(), parts.sequence()
    answered = [answer(engine, ask(sequence, LONG[:20])) for sequence in (calm, other)]
    assert other.pending == answered[1][-1:]
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoding, "prefill", lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
        with pytest.raises(RuntimeError):
            read(engine, other, LONG[:200]) if kind == "text" else answer(engine, ask(other, LONG[:200]))
    assert (other.table.tokens, other.pending) == (calm.table.tokens, calm.pending)
    for sequence in (calm, other):
        read(engine, sequence, LONG[:200])
        assert not sequence.pending
    assert answer(engine, ask(other, LONG[:20])) == answer(engine, ask(calm, LONG[:20]))


def test_a_refused_turn_leaves_a_long_conversation_as_it_was(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = parts.engine()
    calm, other = parts.sequence(), parts.sequence()
    for sequence in (calm, other):
        read(engine, sequence, LONG[:600])
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoding, "prefill", lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
        with pytest.raises(RuntimeError):
            engine.run_all([ask(other, LONG[200:290])])
    assert other.table.tokens == 600
    assert answer(engine, ask(other, LONG[:20])) == answer(engine, ask(calm, LONG[:20]))


def test_without_a_store_the_conversation_goes_on_in_the_hot_window_and_says_so(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()

    def refuse() -> ColdStore:
        raise SessionError("the disk is full")

    sequence.tiers._open_store = refuse
    read(engine, sequence, LONG)
    (events,) = engine.run_all([ask(sequence, LONG[:20])])
    assert [note for note in events[0].notes if "the disk is full; the conversation goes on" in note]
    assert isinstance(events[-1], Finished)
    assert not sequence.tiers.take_faults()


def test_a_page_damaged_on_disk_is_left_out_and_told(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    words = [8001, 8002, 8003, 8004]
    read(engine, sequence, [*PLAIN[:160], *words, 77, 78, *PLAIN[160:]])
    sequence.tiers.flush()
    store = sequence.tiers._store
    with store._db.env.begin(write=True) as txn:
        key = (160 // PAGE_TOKENS).to_bytes(8, "big")
        payload = bytearray(txn.get(key, db=store._db.payloads))
        payload[1000] ^= 4
        txn.put(key, bytes(payload), db=store._db.payloads)
    (events,) = engine.run_all([ask(sequence, [5, 6, *words])])
    notes = [*events[0].notes, *events[-1].notes]
    assert [note for note in notes if "damaged" in note]
    assert 160 // PAGE_TOKENS not in sequence.table.recalled(sequence.table.tokens - 1)


def test_what_is_pinned_is_kept_exactly(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    read(engine, sequence, LONG[:200])
    sequence.tiers.pin(sequence.table, 180)
    read(engine, sequence, LONG[200:])
    sequence.tiers.flush()
    kept = {entry.index: entry for entry in sequence.tiers._store.entries()}
    assert {page for page, entry in kept.items() if entry.pinned} == {11, 12}
    assert {kept[page].form for page in (11, 12)} == {"exact"}


def test_what_was_said_before_is_kept_as_a_mean(parts: Parts) -> None:
    engine, sequence = parts.engine(), parts.sequence()
    read(engine, sequence, [*LONG[:320], *LONG[:320], *LONG[320:]])
    sequence.tiers.flush()
    forms = {entry.index: entry.form for entry in sequence.tiers._store.entries()}
    assert {forms[page] for page in range(1, 20)} == {"int8"}
    assert {forms[page] for page in range(22, 40)} == {"summary"}
