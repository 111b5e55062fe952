"""Whole turns on the compiled tiny set, held against torch and against themselves."""

from pathlib import Path

import pytest
from eager import EXACT, Eager
from feeding import difference, fed, new_sequence, random_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_packs import WINDOW, catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request
from modularbase_core.errors import BudgetError, InputError
from modularbase_core.host import Host, Parts
from modularbase_core.text.template import Message, render
from modularbase_core.turn.route import force
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Event, Finished, Token

# up to here every token sees all before it, so attention without a window is the reference
FULLY_VISIBLE = WINDOW.sink_tokens + WINDOW.recent_tokens + WINDOW.block_tokens
GREEDY = SamplingConfig(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def parts(tiny_packs: dict[str, Path], cache: Path) -> Parts:
    return Parts(EngineConfig(cache_dir=cache, hot_tokens=8192, **EXACT), catalog_of(tiny_packs), None)


@pytest.fixture(scope="module")
def eager(tiny_packs: dict[str, Path]) -> Eager:
    return Eager(tiny_packs, "tiny-base")


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, (Token, Finished)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["general_chat", "python_code"]))
def test_any_chunking_gives_the_logits_of_torch(parts: Parts, eager: Eager, pieces: list[int], pack: str) -> None:
    while sum(pieces) > FULLY_VISIBLE:
        pieces = pieces[:-1]
    token_ids = random_tokens(sum(pieces))
    got = fed(parts.engine(), new_sequence(parts), token_ids, pack, pieces)
    assert difference(got, eager.logits(token_ids, pack)[-1]) <= 1e-5


def test_chunked_whole_and_decode_agree_five_windows_long(parts: Parts) -> None:
    token_ids = random_tokens(5 * WINDOW.trained_tokens)
    whole = fed(parts.engine(), new_sequence(parts), token_ids, "python_code", [len(token_ids)])
    chunked = fed(parts.engine(prefill_rows=7), new_sequence(parts), token_ids, "python_code", [100, 3, 200, 337])
    decoded = fed(parts.engine(), new_sequence(parts), token_ids, "python_code", [33] + [1] * (len(token_ids) - 33))
    assert difference(chunked, whole) <= 1e-5
    assert difference(decoded, whole) <= 1e-5


def test_a_pack_that_comes_back_knows_what_it_missed(parts: Parts) -> None:
    token_ids = random_tokens(90)
    engine = parts.engine()
    stayed = fed(engine, new_sequence(parts), token_ids, "python_code", [40, 30, 20])
    sequence = new_sequence(parts)
    fed(engine, sequence, token_ids[:40], "python_code", [40])
    away = sequence.fused
    sequence.route = force(["general_chat"])
    with engine.slots.hold(["python_code"]) as slots:
        slots[0].content.forget(sequence)  # as an eviction does
    assert away == 40
    returned = fed(engine, sequence, token_ids[40:], "python_code", [30, 20])
    assert difference(returned, stayed) <= 1e-4


def test_a_greedy_answer_is_the_one_of_torch(tiny_host: Host, eager: Eager) -> None:
    messages = [Message("user", "What is a list comprehension?")]
    events = list(tiny_host.chat(messages, GREEDY, packs=["python"]))
    prompt = render(messages, tiny_host.tokenizer, generate=True).token_ids
    assert tokens_of(events) == eager.greedy(prompt, "python_code", 12, tiny_host.tokenizer.control("<|end|>"))


def test_company_changes_no_token_and_no_bit(parts: Parts) -> None:
    engine = parts.engine()

    def request(number: int) -> Request:
        return Request(
            sequence=new_sequence(parts),
            token_ids=random_tokens(9 + 5 * number, number),
            question=(0, 5),
            sampling=SamplingConfig(max_tokens=10 + number, seed=number, logprobs=0),
            packs=[("general_chat",), ("python_code",), ("python_code", "general_chat")][number % 3],
        )

    alone = [engine.run_all([request(number)])[0] for number in range(6)]
    together = engine.run_all([request(number) for number in range(6)])
    for one, other in zip(alone, together, strict=True):
        assert [(t.token_id, t.logprob) for t in one if isinstance(t, Token)] == [
            (t.token_id, t.logprob) for t in other if isinstance(t, Token)
        ]


def test_a_conversation_is_continued_not_computed_again(tiny_host: Host, eager: Eager) -> None:
    first = [Message("user", "hello")]
    answer = text_of(list(tiny_host.chat(first, GREEDY, packs=["chat"])))
    second = [*first, Message("assistant", answer), Message("user", "and then?")]
    events = list(tiny_host.chat(second, GREEDY, packs=["chat"]))
    finished = events[-1]
    assert isinstance(finished, Finished)
    whole = render(second, tiny_host.tokenizer, generate=True).token_ids
    assert finished.prompt_tokens < len(whole) - 10


def test_a_conversation_goes_on_for_five_windows_in_bounded_pages(tiny_host: Host) -> None:
    messages: list[Message] = []
    held = []
    for turn in range(30):
        messages.append(Message("user", f"turn {turn}: tell me more about it please"))
        answer = text_of(list(tiny_host.chat(messages, GREEDY)))
        messages.append(Message("assistant", answer))
        assert tiny_host._conversation is not None
        table = tiny_host._conversation.sequence.table
        held.append(len(table.page_ids))
    assert table.tokens > 5 * WINDOW.trained_tokens
    assert max(held) <= WINDOW.trained_tokens // 16 + 2


def test_an_answer_that_is_broken_off_leaves_the_model_whole(tiny_host: Host) -> None:
    messages = [Message("user", "hello there")]
    wanted = text_of(list(tiny_host.chat(messages, GREEDY)))
    stream = tiny_host.chat(messages, GREEDY)
    for _ in range(4):
        next(stream)
    stream.close()
    assert text_of(list(tiny_host.chat(messages, GREEDY))) == wanted


def test_sampling_with_a_seed_repeats_itself(tiny_host: Host) -> None:
    messages = [Message("user", "hello there")]
    config = SamplingConfig(seed=5, max_tokens=20, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    one, other = (tokens_of(list(tiny_host.chat(messages, config))) for _ in range(2))
    assert one == other


def test_the_stop_string_ends_the_answer_and_is_not_shown(tiny_host: Host) -> None:
    messages = [Message("user", "hello there")]
    whole = text_of(list(tiny_host.chat(messages, SamplingConfig(temperature=0, max_tokens=20))))
    stop = whole[5:9]
    events = list(tiny_host.chat(messages, SamplingConfig(temperature=0, max_tokens=20, stop=(stop,))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].stop) == ("stop", stop)


def test_a_prompt_longer_than_all_hot_pages_is_read_through(parts: Parts, tiny_host: Host) -> None:
    events = list(tiny_host.chat([Message("user", "word " * 10_000)], GREEDY))
    assert events[-1].prompt_tokens > 8192
    assert text_of(list(tiny_host.chat([Message("user", "hi")], GREEDY)))


def test_without_tiers_a_prompt_that_cannot_fit_is_refused_before_anything_is_computed(parts: Parts) -> None:
    request = Request(
        sequence=new_sequence(parts), token_ids=random_tokens(9000), question=(0, 5), sampling=GREEDY, packs=()
    )
    with pytest.raises(InputError, match="tokens but"):
        parts.engine().submit(request)


def test_what_does_not_fit_the_memory_is_refused_before_it_is_loaded(tiny_packs: dict[str, Path], cache: Path) -> None:
    config = EngineConfig(cache_dir=cache, hot_tokens=4096, memory_bytes=4 << 20)
    with pytest.raises(BudgetError, match="needs"):
        Parts(config, catalog_of(tiny_packs), None)
