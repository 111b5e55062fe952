"""Conversations that begin alike: what one has understood and fused others take over, and no bit of any answer changes.

The tiny window shares its first 96 tokens; 85 are alike here, five full pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feeding import random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packs import WINDOW, catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request, Running
from modularbase_core.errors import BudgetError
from modularbase_core.host import Host, Parts, build
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Finished, Routed, Token

SYSTEM = random_tokens(85)
PAGES, ALIKE = 5, 80
LONG = [*SYSTEM, *random_tokens(600, 9)]
CHAT, CODE, BOTH = ("general_chat",), ("python_code",), ("python_code", "general_chat")
Answer = list[tuple[int, float | None, tuple[tuple[int, float], ...]]]


class Model:
    """An engine, and the rows that its programs took. told: what a test notes of it."""

    told: Any
    read_rows: tuple[int, int]

    def __init__(self, parts: Parts) -> None:
        self.parts, self.engine = parts, parts.engine()
        self.understood = self.fused = 0
        understand, fuse = self.engine.understanding.step, self.engine.decoding._fusion.logits

        def counted_understand(token_ids: Any, rows: Any) -> Any:
            self.understood += len(token_ids)
            return understand(token_ids, rows)

        def counted_fuse(pieces: Any, rows: Any, wanted: Any) -> Any:
            self.fused += pieces[0].output.shape[0]
            return fuse(pieces, rows, wanted)

        self.engine.understanding.step = counted_understand  # type: ignore[method-assign]
        self.engine.decoding._fusion.logits = counted_fuse  # type: ignore[method-assign]

    @property
    def pool(self) -> Any:
        return self.engine.decoding._hot.pool

    def request(
        self, token_ids: list[int], packs: tuple[str, ...] = CHAT, *, sequence: Sequence | None = None, tokens: int = 4
    ) -> Request:
        """Ask with `token_ids`; what is sampled tells logits to the last bit."""
        sampling = SamplingConfig(temperature=0, max_tokens=tokens, logprobs=3)
        sequence = self.parts.sequence() if sequence is None else sequence
        question = (len(SYSTEM), len(token_ids))
        return Request(sequence=sequence, token_ids=token_ids, question=question, sampling=sampling, packs=packs)

    def answer(self, token_ids: list[int], packs: tuple[str, ...] = CHAT, **more: Any) -> Answer:
        return said(self.engine.run_all([self.request(token_ids, packs, **more)])[0])

    def rows(self) -> tuple[int, int]:
        """Return the rows that were understood and fused since this was last asked."""
        rows, self.understood, self.fused = (self.understood, self.fused), 0, 0
        return rows


def said(events: Any) -> Answer:
    return [(event.token_id, event.logprob, event.top) for event in events if isinstance(event, Token)]


def asked(seed: int, count: int = 7) -> list[int]:
    """The same system prompt, and a question of its own."""
    return [*SYSTEM, *random_tokens(count, seed)]


@pytest.fixture(scope="module")
def model_of(tiny_packs: dict[str, Path], parts_of: Callable[..., Parts]) -> Callable[..., Model]:
    kept: dict[Any, Parts] = {}

    def make(**more: object) -> Model:
        key = tuple(more.items())
        if key not in kept:
            kept[key] = parts_of(tiny_packs, **{"hot_tokens": 2048, **more})
        return Model(kept[key])

    return make


@pytest.fixture
def model(model_of: Callable[..., Model]) -> Model:
    return model_of()


@pytest.fixture
def plain(model_of: Callable[..., Model]) -> Model:
    return model_of(prefix_tokens=0)


def test_a_second_conversation_understands_and_fuses_what_is_its_own_alone(model: Model, plain: Model) -> None:
    first = model.answer(asked(1))
    everything = model.rows()
    second = model.answer(asked(2))
    assert model.rows() == tuple(rows - ALIKE for rows in everything)
    assert [first, second] == [plain.answer(asked(seed)) for seed in (1, 2)]
    plain.rows()
    plain.answer(asked(2))
    assert plain.rows() == everything


def test_by_another_route_all_is_understood_and_fusion_begins_anew(model: Model, plain: Model) -> None:
    for seed, packs in enumerate((CHAT, CODE, BOTH, CODE, CHAT, BOTH)):
        model.rows()
        got = model.answer(asked(seed), packs)
        rows = model.rows()
        assert got == plain.answer(asked(seed), packs)
        shared = (ALIKE if seed else 0, ALIKE if seed > 2 else 0)
        assert rows == tuple(len(asked(seed)) + 3 - one for one in shared)


def test_the_router_sees_the_whole_message(model: Model, plain: Model) -> None:
    """Also where it begins among the sinks, and all of it was taken over."""
    for one in (model, plain):
        for seed in (1, 1):
            request = replace(one.request(asked(seed), ()), question=(3, 90), message="")
            routed, *rest = one.engine.run_all([request])[0]
            assert isinstance(routed, Routed)
            one.told = (routed.scores, said(rest))
    assert model.told == plain.told


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((0, 1, 15, 16, 17, 80, 85, 96, 97, 130, 200, 400)),
            st.sampled_from((1, 9, 16, 40)),
            st.sampled_from((CHAT, CODE, BOTH)),
            st.sampled_from((1, 20)),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_whatever_came_before_no_bit_of_an_answer_changes(
    model_of: Callable[..., Model], turns: list[tuple[int, int, tuple[str, ...], int]]
) -> None:
    model, plain = model_of(), model_of(prefix_tokens=0)
    for number, (alike, own, packs, tokens) in enumerate(turns):
        token_ids = [*LONG[:alike], *random_tokens(own, number % 2)]
        assert model.answer(token_ids, packs, tokens=tokens) == plain.answer(token_ids, packs, tokens=tokens)


def test_a_conversation_that_still_runs_is_shared(model: Model, plain: Model) -> None:
    running = model.engine.submit(model.request(asked(1), tokens=12))
    for _ in range(3):
        model.engine.step()
    model.rows()
    assert model.answer(asked(2), tokens=3) == plain.answer(asked(2), tokens=3)
    assert model.rows()[0] < ALIKE
    assert said(finished(model, running).events) == plain.answer(asked(1), tokens=12)


def test_the_first_conversation_may_end_while_the_second_goes_on(model: Model, plain: Model) -> None:
    one = model.request(asked(1))
    model.engine.run_all([one])
    other = model.engine.submit(model.request(asked(2), tokens=40))
    for _ in range(3):
        model.engine.step()
    model.engine.release(one.sequence)
    for seed in range(3, 6):  # who would write where they lie
        model.answer(random_tokens(90, seed))
    assert said(finished(model, other).events) == plain.answer(asked(2), tokens=40)


def test_several_in_a_batch_share_and_say_what_they_say_alone(model: Model, plain: Model) -> None:
    wanted = [plain.answer(asked(seed), packs) for seed, packs in enumerate((CHAT, CODE, CHAT, BOTH, CODE, CHAT))]
    free = model.pool.free_count
    requests = [model.request(asked(seed), packs) for seed, packs in enumerate((CHAT, CODE, CHAT, BOTH, CODE, CHAT))]
    assert [said(events) for events in model.engine.run_all(requests)] == wanted
    tables = [one.sequence.table for one in requests]
    assert len({tuple(table.page(index) for index in range(PAGES)) for table in tables}) == 3, "one for each route"
    for one in requests:
        model.engine.release(one.sequence)
    assert model.pool.free_count + model.engine.decoding.sharing.held_pages == free


def test_of_a_long_prompt_what_sees_all_before_it_is_shared(model: Model, plain: Model) -> None:
    first = model.answer(LONG)
    everything = model.rows()
    assert model.engine.decoding.sharing.held_pages == WINDOW.fully_visible_tokens // 16 == 6
    assert model.answer(LONG) == first == plain.answer(LONG)
    assert model.rows() == tuple(rows - 80 for rows in everything), "its last page below that ends a block"


def test_a_text_is_read_on_from_what_is_shared_of_it(model: Model, plain: Model) -> None:
    for one in (model, plain):
        one.told = []
        for _ in range(2):
            sequence = one.parts.sequence()
            one.rows()
            through = list(one.engine.read(sequence, LONG))
            assert through[-1] == len(LONG)
            one.read_rows = one.rows()
            one.told.append(one.answer(random_tokens(9), sequence=sequence))
    assert model.told == plain.told
    assert model.read_rows[0] == plain.read_rows[0] - 80


def test_an_answer_is_shared_by_who_asks_on_from_it(model: Model, plain: Model) -> None:
    one = model.request(SYSTEM[:40], tokens=12)
    told = [token for token, *_ in said(model.engine.run_all([one])[0])]
    again = [*SYSTEM[:40], *told, *random_tokens(5)]
    model.rows()
    assert model.answer(again, tokens=1) == plain.answer(again, tokens=1)
    assert model.rows() == (len(again) - 48, len(again) - 48)


@pytest.mark.parametrize("where", ["ingest", "prefill", "after"])
@pytest.mark.parametrize("packs", [CHAT, CODE])
def test_a_turn_that_fails_leaves_what_it_shared_whole(
    model: Model, plain: Model, monkeypatch: pytest.MonkeyPatch, where: str, packs: tuple[str, ...]
) -> None:
    model.answer(asked(1))
    owner = {"ingest": model.engine.understanding, "prefill": model.engine.decoding._fusion, "after": model.engine}
    name = {"ingest": "step", "prefill": "logits", "after": "_faults"}[where]
    second = model.request(asked(2), packs)
    with monkeypatch.context() as patch:
        patch.setattr(owner[where], name, lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
        running = model.engine.submit(second)
        model.engine.step()
    assert isinstance(running.error, RuntimeError)
    assert (second.sequence.table.tokens, second.sequence.table.page_ids) == (0, [])
    assert model.answer(asked(2), packs, sequence=second.sequence) == plain.answer(asked(2), packs)
    assert model.answer(asked(3)) == plain.answer(asked(3))


def test_a_later_turn_that_fails_late_writes_to_pages_of_its_own(
    model: Model, plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for one in (model, plain):
        request = one.request(SYSTEM[:37], tokens=1)
        one.engine.run_all([request])
        with monkeypatch.context() as patch:
            patch.setattr(one.engine, "_faults", lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
            with pytest.raises(RuntimeError):
                one.engine.run_all([one.request(SYSTEM[37:80], sequence=request.sequence)])
        told.append(one.answer(random_tokens(30), sequence=request.sequence))
    assert told[0] == told[1]


def test_conversations_come_before_what_is_kept_for_others(tiny_packs: dict[str, Path], cache: Path) -> None:
    settings = EngineConfig(cache_dir=cache, hot_tokens=1024)
    answers = []
    for config in (settings, replace(settings, prefix_tokens=0)):
        with build(config, catalog=catalog_of(tiny_packs)) as host:
            model = Model(host._parts)
            for seed in range(20):
                sequence = model.parts.sequence()
                model.answer(random_tokens(95, seed), sequence=sequence)
                model.engine.release(sequence)
            assert model.pool.free_count < 8 or not config.prefix_tokens
            sequences = [model.parts.sequence() for _ in range(8)]
            batch = [model.request(random_tokens(95, 30 + n), sequence=one) for n, one in enumerate(sequences)]
            answers.append([said(events) for events in model.engine.run_all(batch)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("held", "fits"), [(56, True), (57, True), (58, True), (59, False)])
def test_where_pages_are_short_a_prompt_fits_that_fits_without_sharing(
    model_of: Callable[..., Model], plain: Model, held: int, fits: bool
) -> None:
    """Of 64 pages; a prompt of 92 tokens takes 6, also where 5 of them are to be copied."""
    model = model_of(hot_tokens=1024)
    first = model.request(asked(1))
    model.engine.run_all([first])
    model.engine.release(first.sequence)
    hog = replace(model.parts.sequence(), tiers=None)
    model.engine.understanding.ingest(hog, [7] * (16 * held))
    second = model.engine.submit(model.request(asked(2), CODE, tokens=1))
    while not second.finished:
        model.engine.step()
    assert isinstance(second.error, BudgetError) != fits
    assert said(second.events) == (plain.answer(asked(2), CODE, tokens=1) if fits else [])
    for one in (hog, second.request.sequence):
        model.engine.release(one)
    assert model.pool.free_count + model.engine.decoding.sharing.held_pages == 64
    assert model.answer(asked(2), CODE) == plain.answer(asked(2), CODE)


def finished(model: Model, running: Running) -> Running:
    while not running.finished:
        model.engine.step()
    assert running.error is None
    return running


@pytest.fixture
def host(tiny_packs: dict[str, Path], cache: Path) -> Iterator[Host]:
    with build(EngineConfig(cache_dir=cache, hot_tokens=2048), catalog=catalog_of(tiny_packs)) as host:
        yield host


def test_the_end_of_an_answer_and_the_memory_tell_how_much_was_shared(host: Host) -> None:
    system = Message("system", "You are a patient gardener who answers in one short sentence and names the season.")
    told: Mapping[str, int] = {}
    for question in ("When do I sow beans?", "When do I prune roses?"):
        events = list(host.chat([system, Message("user", question)], SamplingConfig(temperature=0, max_tokens=3)))
        assert isinstance(events[-1], Finished)
        report = host.memory()
        assert report is not None
        assert report.shared_tokens == events[-1].shared_tokens
        told = {**told, question: report.shared_tokens}
    none, some = told.values()
    assert none == 0
    assert some >= 16
    assert some % 16 == 0


def test_a_session_that_is_taken_up_from_disk_shares_nothing(host: Host, tmp_path: Path) -> None:
    messages = [Message("user", "tell me of the sea and of all that lives in it, from the coast to the deep")]
    host._parts.conversations._config = replace(host._parts.config, sessions_dir=tmp_path)
    host.resume("sea")
    list(host.chat(messages, SamplingConfig(temperature=0, max_tokens=20)))
    before = host.engine.decoding.sharing.held_pages
    host.resume("sea")
    assert host._conversation is not None
    sequence = host._conversation.sequence
    assert sequence.table.tokens > 32
    list(host.chat([*host._conversation.messages, Message("user", "go on")], SamplingConfig(max_tokens=20)))
    assert (sequence.beginning.token_ids, host.engine.decoding.sharing.held_pages) == ([], before)
