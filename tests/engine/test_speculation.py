"""Drafts change nothing but time: tokens, logprobs, pages, watermarks and what is on disk are those of one by one.

Most drafts here are made of the answer that comes without, wrong where a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feeding import random_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_packs import WINDOW, catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Host, Parts, build
from modularbase_core.text.template import Message
from modularbase_core.turn import draft
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Finished, Token

CHAT, CODE, BOTH = ("general_chat",), ("python_code",), ("python_code", "general_chat")
GREEDY = SamplingConfig(temperature=0, max_tokens=40, logprobs=2)
SAMPLED = SamplingConfig(seed=7, max_tokens=40, logprobs=2)
Drafts = Callable[[list[int]], Callable[..., tuple[int, list[int]]]]


class Model:
    """An engine, with drafts or without, and the calls that it made."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.engine, self.calls = parts, parts.engine(), 0
        look_ahead = self.engine.decoding.look_ahead

        def counted(*given: Any) -> Any:
            self.calls += 1
            return look_ahead(*given)

        self.engine.decoding.look_ahead = counted  # type: ignore[method-assign]

    def request(
        self, token_ids: list[int], sampling: SamplingConfig, packs: tuple[str, ...] = CHAT, **more: Any
    ) -> Request:
        sequence = more.get("sequence") or self.parts.sequence()
        return Request(
            sequence=sequence, token_ids=token_ids, question=(0, len(token_ids)), sampling=sampling, packs=packs
        )

    def turn(self, *given: Any, **more: Any) -> list[Event]:
        return self.engine.run_all([self.request(*given, **more)])[0]


@pytest.fixture(scope="module")
def drafting(tiny_packs: dict[str, Path], parts_of: Callable[..., Parts]) -> Parts:
    return parts_of(tiny_packs, hot_tokens=2048, prefix_tokens=0)


@pytest.fixture(scope="module")
def stepping(tiny_packs: dict[str, Path], parts_of: Callable[..., Parts]) -> Parts:
    return parts_of(tiny_packs, hot_tokens=2048, prefix_tokens=0, draft_tokens=0)


def told(events: list[Event]) -> list[Event]:
    """Leave out how many were drafted."""
    *before, last = events
    assert isinstance(last, Finished)
    return [*before, replace(last, drafted_tokens=0, accepted_tokens=0)]


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def state(engine: Engine, sequence: Sequence) -> Mapping[str, object]:
    """All that a later turn may depend on."""
    tiers = sequence.tiers
    assert tiers is not None
    tiers.flush()
    marks = {pack.pack_id: pack.table(sequence).tokens for pack in engine.slots.contents()}
    return {
        "tokens": (sequence.table.tokens, sequence.fused, sequence.pending, list(sequence.seen), marks),
        "pages": (sorted(sequence.table._page)[: -(-sequence.table.tokens // 16)], sequence.table.recalls),
        "heard": (tiers.heard.first, tiers.heard.end, tiers.heard.last(tiers.heard.end, 10_000), tiers.heard.role),
        "kept": (tiers._kept, tiers._indexed, tiers.measure(sequence.table).cold_tokens, tiers.recalled),
        "beginning": (sequence.beginning.token_ids, sequence.beginning.routes),
    }


@contextmanager
def drafts_of(
    answer: list[int],
    start: int,
    wrong: Collection[int] = (),
    lengths: tuple[int, ...] = (15,),
    *,
    all_pay: bool = True,
) -> Iterator[None]:
    """Draft the answer that begins at token `start`, but for the places that are `wrong`; so many tokens in turn.

    all_pay: as many as are allowed, whatever was learnt.
    """

    def told_before(self: draft.Lookup, token_id: int, count: int) -> tuple[int, list[int]]:
        place = self.end - start
        size = min(count, lengths[place % len(lengths)])
        ahead = range(place + 1, min(place + 1 + size, len(answer)))
        return draft.LENGTHS[0], [answer[one] + (one in wrong) for one in ahead]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft.Lookup, "draft", told_before)
        if all_pay:
            patch.setattr(draft, "paying", lambda chance: 15)
        yield


def both_ways(
    drafting: Parts, stepping: Parts, turns: list[tuple[Any, ...]], **how: Any
) -> tuple[list[Event], list[Event], Model]:
    """Hold a conversation with drafts and without, and see that all is the same after each turn; return the last."""
    with_drafts, without = Model(drafting), Model(stepping)
    one, other = with_drafts.parts.sequence(), without.parts.sequence()
    for token_ids, sampling, packs in turns:
        want = without.turn(token_ids, sampling, packs, sequence=other)
        with drafts_of(tokens_of(want), one.table.tokens + len(one.pending) + len(token_ids), **how):
            got = with_drafts.turn(token_ids, sampling, packs, sequence=one)
        assert told(got) == told(want)
        assert state(with_drafts.engine, one) == state(without.engine, other)
    for model, sequence in ((with_drafts, one), (without, other)):
        model.engine.release(sequence)
        assert model.engine.decoding._hot.pool.free_count == model.engine.decoding._hot.pool.page_count
        assert all(pack._pool.free_count == pack._pool.page_count for pack in model.engine.slots.contents())
    return got, want, with_drafts


samplings = st.builds(
    SamplingConfig,
    temperature=st.sampled_from((0, 0.3, 1.0)),
    top_k=st.sampled_from((0, 20)),
    top_p=st.sampled_from((1.0, 0.8)),
    min_p=st.sampled_from((0.0, 0.05)),
    repetition_penalty=st.sampled_from((1.0, 1.3)),
    presence_penalty=st.sampled_from((0.0, 0.5)),
    frequency_penalty=st.sampled_from((0.0, 0.4)),
    seed=st.integers(0, 9),
    max_tokens=st.sampled_from((1, 2, 9, 33, 70)),
    logprobs=st.sampled_from((None, 0, 3)),
)
turns = st.tuples(
    st.builds(random_tokens, st.sampled_from((1, 15, 16, 31, 32, 47, 100)), st.integers(0, 3)),
    samplings,
    st.sampled_from((CHAT, CODE, BOTH)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(turns, min_size=1, max_size=4),
    st.sets(st.integers(1, 70), max_size=20),
    st.lists(st.integers(0, 15), min_size=1, max_size=5).map(tuple),
)
def test_whatever_is_drafted_all_is_as_without(
    drafting: Parts, stepping: Parts, turns: list[tuple[Any, ...]], wrong: set[int], lengths: tuple[int, ...]
) -> None:
    both_ways(drafting, stepping, turns, wrong=wrong, lengths=lengths)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, repetition_penalty=1.2, min_p=0.01)])
def test_right_drafts_are_accepted_and_save_calls(drafting: Parts, stepping: Parts, sampling: SamplingConfig) -> None:
    got, _, model = both_ways(drafting, stepping, [(random_tokens(40), sampling, CODE)])
    end = end_of(got)
    assert end.drafted_tokens == end.accepted_tokens >= 30
    assert model.calls <= 8, "blocks of 32 begin alone"


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_wrong_drafts_are_all_taken_back(drafting: Parts, stepping: Parts, sampling: SamplingConfig) -> None:
    asked = [(random_tokens(45, seed), sampling, packs) for seed, packs in enumerate((CODE, CHAT, BOTH, CODE))]
    got, want, model = both_ways(drafting, stepping, asked, wrong=range(100))
    assert end_of(got).drafted_tokens > len(tokens_of(want))
    assert end_of(got).accepted_tokens == 0
    assert model.calls == 4 * (sampling.max_tokens - 1)


def test_drafts_that_never_come_are_soon_left_and_those_that_come_grow(drafting: Parts, stepping: Parts) -> None:
    asked = [(random_tokens(40), replace(SAMPLED, max_tokens=120), CHAT)]
    left, _, _ = both_ways(drafting, stepping, asked, wrong=range(200), all_pay=False)
    assert 0 < end_of(left).drafted_tokens < 20
    grown, _, model = both_ways(drafting, stepping, asked, all_pay=False)
    assert end_of(grown).accepted_tokens == end_of(grown).drafted_tokens > 80
    assert model.calls < 40


def test_after_drafts_that_failed_those_that_would_come_are_found_again(drafting: Parts, stepping: Parts) -> None:
    asked = [(random_tokens(40), replace(SAMPLED, max_tokens=120), CHAT)]
    got, _, _ = both_ways(drafting, stepping, asked, wrong=range(30), all_pay=False)
    assert end_of(got).accepted_tokens > 40


@pytest.mark.parametrize("place", [1, 2, 5, 16, 30])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_an_end_token_in_an_accepted_run_ends_the_answer_there(
    drafting: Parts, stepping: Parts, place: int, sampling: SamplingConfig
) -> None:
    whole = tokens_of(Model(stepping).turn(random_tokens(40), sampling, CHAT))
    ended = replace(sampling, stop_token_ids=(whole[place],))
    asked = [(random_tokens(40), ended, CHAT), (random_tokens(9), sampling, CODE)]
    got, _, _ = both_ways(drafting, stepping, asked)
    assert end_of(got).accepted_tokens


def test_a_stop_string_in_an_accepted_run_ends_the_answer_there(drafting: Parts, stepping: Parts) -> None:
    events = Model(stepping).turn(random_tokens(40), SAMPLED, CHAT)
    text = "".join(event.text for event in events if isinstance(event, Token))
    for first in (3, 20, 60):
        stopped = replace(SAMPLED, stop=(text[first : first + 4],))
        both_ways(drafting, stepping, [(random_tokens(40), stopped, CHAT), (random_tokens(9), SAMPLED, CODE)])


def test_what_was_said_before_is_drafted_from(drafting: Parts, stepping: Parts) -> None:
    """Greedy, an answer of random weights soon repeats itself."""
    sampling = replace(GREEDY, max_tokens=120)
    with_drafts, without = Model(drafting), Model(stepping)
    got, want = (model.turn(random_tokens(40), sampling, CHAT) for model in (with_drafts, without))
    assert told(got) == told(want)
    assert end_of(got).accepted_tokens > 0
    assert with_drafts.calls == without.calls - end_of(got).accepted_tokens


def test_of_several_running_nothing_is_drafted(drafting: Parts, stepping: Parts) -> None:
    answers = []
    for model in (Model(drafting), Model(stepping)):
        requests = [model.request(random_tokens(20, seed), GREEDY, packs) for seed, packs in enumerate((CHAT, CODE))]
        answers.append(model.engine.run_all(requests))
    assert [told(events) for events in answers[0]] == [told(events) for events in answers[1]]
    assert [end_of(events).drafted_tokens for events in answers[0]] == [0, 0]


@pytest.mark.parametrize("alone", [1, 4, 11])
@pytest.mark.parametrize("wrong", [(), range(3, 99, 4)])
def test_one_that_joins_in_the_middle_of_a_draft_changes_nothing(
    drafting: Parts, stepping: Parts, alone: int, wrong: Collection[int]
) -> None:
    model, plain = Model(drafting), Model(stepping)
    want = [plain.turn(random_tokens(20), SAMPLED, CHAT), plain.turn(random_tokens(30, 1), SAMPLED, CODE)]
    with drafts_of(tokens_of(want[0]), 20, wrong):
        first = model.engine.submit(model.request(random_tokens(20), SAMPLED, CHAT))
        for _ in range(alone):
            model.engine.step()
        second = model.engine.submit(model.request(random_tokens(30, 1), replace(SAMPLED, max_tokens=12), CODE))
        model.engine.step()
        assert not first.ahead._expected
        while not (first.finished and second.finished):
            model.engine.step()
    assert told(list(first.events)) == told(want[0])
    assert tokens_of(list(second.events)) == tokens_of(want[1])[:12]
    assert end_of(list(second.events)).drafted_tokens == 0


@pytest.mark.parametrize("count", [2, 3, 8, 17, 30])
def test_an_answer_that_is_cut_short_stands_where_it_was_told_to(drafting: Parts, stepping: Parts, count: int) -> None:
    want = tokens_of(Model(stepping).turn(random_tokens(40), SAMPLED, CHAT))
    after, states = [], []
    with drafts_of(want, 40, wrong=(12, 25)):
        for parts in (drafting, stepping):
            model, sequence = Model(parts), parts.sequence()
            with closing(model.engine.stream(model.request(random_tokens(40), SAMPLED, CHAT, sequence=sequence))) as it:
                said = [event for event, _ in zip(it, range(count), strict=False)]
            assert tokens_of(said) == want[: count - 1]
            states.append(state(model.engine, sequence))
            after.append(told(model.turn(random_tokens(5), GREEDY, CODE, sequence=sequence)))
    assert states[0] == states[1]
    assert after[0] == after[1]


@pytest.mark.parametrize("left", [0, 1, 2])
def test_where_pages_are_short_nothing_is_drafted_and_nothing_refused(
    drafting: Parts, stepping: Parts, left: int
) -> None:
    sampling = replace(SAMPLED, max_tokens=110)
    want = Model(stepping).turn(random_tokens(40), sampling, CHAT)
    model = Model(drafting)
    pool = model.engine.decoding._hot.pool
    request = model.request(random_tokens(40), sampling, CHAT)
    with drafts_of(tokens_of(want), 40, wrong=(5, 6, 15, 30)):
        running = model.engine.submit(request)
        model.engine.step()
        held = pool.allocate(pool.free_count - left)
        alone = 0
        while not running.finished:
            if not pool.free_count:  # one is given when a token needs it, and not before
                pool.free([held.pop() for _ in range(request.sequence.table.pages_missing(1))])
            model.engine.step()
            alone += not running.ahead._rows
    assert running.error is None
    assert told(list(running.events)) == told(want)
    assert alone > 20
    assert end_of(list(running.events)).accepted_tokens > 20


def test_a_call_that_fails_leaves_the_answer_where_it_was(drafting: Parts, stepping: Parts) -> None:
    want = tokens_of(Model(stepping).turn(random_tokens(40), SAMPLED, CHAT))
    after = []
    for parts in (drafting, stepping):
        model, sequence = Model(parts), parts.sequence()
        with drafts_of(want, 40, wrong=(9,)), pytest.MonkeyPatch.context() as patch:
            running = model.engine.submit(model.request(random_tokens(40), SAMPLED, CHAT, sequence=sequence))
            while len(tokens_of(list(running.events))) < 10:
                model.engine.step()
            patch.setattr(model.engine.decoding._fusion, "logits", lambda *_: (_ for _ in ()).throw(RuntimeError("x")))
            while not running.finished:
                model.engine.step()
        assert isinstance(running.error, RuntimeError)
        after.append(
            (state(model.engine, sequence)["tokens"], told(model.turn([5, 6], GREEDY, CODE, sequence=sequence)))
        )
    assert after[0] == after[1]


@pytest.mark.parametrize("clean", [True, False])
def test_a_session_is_taken_up_from_disk_as_without(
    tiny_packs: dict[str, Path], cache: Path, tmp_path: Path, clean: bool
) -> None:
    sampling = SamplingConfig(temperature=0, max_tokens=50)
    kept = []
    for count in (15, 0):
        config = EngineConfig(cache_dir=cache, hot_tokens=2048, draft_tokens=count, sessions_dir=tmp_path / str(count))
        with host_of(config, tiny_packs) as host:
            messages = host.resume("sea")
            for text in ("tell me of the sea", "and of the coast, of all that lives there and why it does so"):
                messages = said(host, [*messages, Message("user", text)], sampling)
            if not clean:  # an answer is left in the middle
                stream = host.chat([*messages, Message("user", "and the deep?")], sampling)
                for _ in range(20):
                    next(stream)
        with host_of(config, tiny_packs) as host:
            messages = host.resume("sea")
            assert host._conversation is not None
            sequence = host._conversation.sequence
            assert sequence.tiers is not None
            tokens = [entry.tokens.tolist() for entry in sequence.tiers.entries()]
            kept.append((messages, tokens, state(host.engine, sequence)))
            kept[-1] += (said(host, [*messages, Message("user", "go on")], sampling),)
    assert kept[0] == kept[1]
    assert kept[0][2]["tokens"][0] > WINDOW.trained_tokens


def host_of(config: EngineConfig, packs: dict[str, Path]) -> Host:
    return build(config, catalog=catalog_of(packs))


def said(host: Host, messages: list[Message], sampling: SamplingConfig) -> list[Message]:
    answer = "".join(event.text for event in host.chat(messages, sampling) if isinstance(event, (Token, Finished)))
    return [*messages, Message("assistant", answer)]
