"""What goes wrong in one turn stays in that turn: sequences are taken back, nothing leaks, the next turn is well."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_packs import BLOCKS, PACK, WINDOW, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request
from modularbase_core.errors import BudgetError, InputError
from modularbase_core.host import Host, build
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Event, Finished, Routed, Token

GREEDY = SamplingConfig(temperature=0, max_tokens=10)
HELLO = Message("user", "hello there")


@pytest.fixture
def small_host(tiny_packs: dict[str, Path], cache: Path) -> Iterator[Host]:
    with build(EngineConfig(cache_dir=cache, hot_tokens=1024), catalog=catalog_of(tiny_packs)) as host:
        yield host


def say(host: Host, messages: list[Message], sampling: SamplingConfig = GREEDY) -> str:
    return text_of(list(host.chat(messages, sampling)))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, (Token, Finished)))


def request(host: Host, seed: int) -> Request:
    ids = [5 + seed, *range(20, 30 + seed)]
    return Request(sequence=host.sequence(), token_ids=ids, question=(0, 5), sampling=GREEDY, packs=("general_chat",))


def free_pages(host: Host) -> list[int]:
    """Those of the base that no conversation holds, and those of each pack."""
    engine = host.engine
    base = engine.decoding._hot.pool.free_count + engine.decoding.sharing.held_pages
    return [base, *(pack._pool.free_count for pack in engine.slots.contents())]


def test_a_refused_message_leaves_a_long_conversation_whole(small_host: Host) -> None:
    messages: list[Message] = []
    while small_host._conversation is None or small_host._conversation.sequence.table.tokens < 1200:
        messages.append(Message("user", "tell me more " * 12))
        messages.append(Message("assistant", say(small_host, messages)))
    held = small_host._conversation.sequence
    with pytest.raises(InputError, match="bytes but"):
        say(small_host, [*messages, Message("user", "word " * 60_000)])
    assert say(small_host, [*messages, Message("user", "and now?")]) is not None
    assert small_host._conversation is not None
    assert small_host._conversation.sequence is held


def test_a_refused_first_message_is_as_if_never_asked(small_host: Host) -> None:
    wanted = say(small_host, [HELLO])
    small_host.close()
    with pytest.raises(InputError):
        say(small_host, [Message("user", "word " * 60_000)])
    assert say(small_host, [HELLO]) == wanted


def test_a_second_answer_ends_the_first_and_leaks_nothing(small_host: Host) -> None:
    before = free_pages(small_host)
    wanted = say(small_host, [HELLO])
    first = small_host.chat([Message("user", "something else")], GREEDY)
    for _ in range(3):
        next(first)
    assert say(small_host, [HELLO]) == wanted
    assert list(first) == []
    small_host.close()
    assert free_pages(small_host) == before


def test_a_fault_in_a_step_ends_the_batch_and_every_sequence_goes_on_from_where_it_was(
    small_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = small_host.engine
    calm = engine.run_all([request(small_host, 0)])
    running = [engine.submit(request(small_host, seed)) for seed in range(2)]
    for _ in range(4):
        engine.step()
    fuse = engine.decoding._fusion.logits
    monkeypatch.setattr(engine.decoding._fusion, "logits", lambda *_: (_ for _ in ()).throw(RuntimeError("fault")))
    engine.step()
    monkeypatch.setattr(engine.decoding._fusion, "logits", fuse)
    for one in running:
        assert isinstance(one.error, RuntimeError)
        assert one.request.sequence.fused == one.request.sequence.table.tokens
        assert len(one.request.sequence.pending) == 1
    one = running[0]
    said = [event.token_id for event in one.events if isinstance(event, Token)]
    assert one.request.sequence.pending == said[-1:]
    # the told token is pending, so continuing with nothing but its successor gives what the calm run gave
    tokens = [event.token_id for event in calm[0] if isinstance(event, Token)]
    after = len(said)
    sampling = SamplingConfig(temperature=0, max_tokens=1)
    rest = replace(one.request, sampling=sampling, token_ids=tokens[after : after + 1])
    got = [event.token_id for event in engine.run_all([rest])[0] if isinstance(event, Token)]
    assert got == tokens[after + 1 : after + 2]


def test_one_requests_error_is_its_own(small_host: Host) -> None:
    engine = small_host.engine
    good = engine.submit(request(small_host, 0))
    hog = small_host.sequence()
    small_host.engine.understanding.ingest(hog, [7] * 700)
    forgetful = replace(small_host.sequence(), tiers=None)  # with tiers it would be read block by block
    bad = engine.submit(replace(request(small_host, 1), sequence=forgetful, token_ids=[9] * 500))
    while not (good.finished and bad.finished):
        engine.step()
    assert good.error is None
    assert isinstance(good.events[-1], Finished)
    assert isinstance(bad.error, BudgetError)
    assert bad.request.sequence.table.tokens == 0


def test_an_answer_broken_off_keeps_every_token_that_was_told(small_host: Host) -> None:
    stream = small_host.chat([HELLO], GREEDY)
    shown = [event for event in (next(stream) for _ in range(5)) if isinstance(event, Token)]
    stream.close()  # type: ignore[attr-defined]
    assert small_host._conversation is not None
    sequence = small_host._conversation.sequence
    prompt = sequence.table.tokens - len(shown) + 1
    assert sequence.pending == [shown[-1].token_id]
    assert prompt > 0


def test_a_bad_file_leaves_a_slot_that_the_next_pack_can_take(
    tiny_packs: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    other = replace(PACK, blocks=replace(BLOCKS, ffn_size=64))
    bad = write_pack(tmp_path / "bad", manifest("bad", "domain", other))
    (bad / "model.safetensors").write_bytes((bad / "model.safetensors").read_bytes()[:-100])
    config = EngineConfig(cache_dir=cache, hot_tokens=1024, slots=1)
    with build(config, catalog=catalog_of({**tiny_packs, "bad": bad})) as host:
        wanted = text_of(list(host.chat([HELLO], GREEDY, packs=["python"])))
        routed = next(host.chat([HELLO], GREEDY, packs=["bad"]))
        assert isinstance(routed, Routed)
        assert [pack.id for pack in routed.packs] == ["general_chat"]
        assert "truncated" in routed.notes[0]
        assert "python_code" in host.engine.slots.loaded(), "nothing is evicted for a pack that is unfit"
        assert text_of(list(host.chat([HELLO], GREEDY, packs=["python"]))) == wanted


def test_bad_routing_keys_refuse_their_pack_alone(tiny_packs: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    bad = tmp_path / "python_code"
    shutil.copytree(tiny_packs["python_code"], bad)
    (bad / "routing.safetensors").write_bytes(b"short")
    with build(EngineConfig(cache_dir=cache), catalog=catalog_of({**tiny_packs, "python_code": bad})) as host:
        assert say(host, [HELLO])
        assert "routing.safetensors" in host.lineup.refused["python_code"]
        with pytest.raises(InputError, match="cannot be asked"):
            list(host.chat([HELLO], GREEDY, packs=["python"]))


def test_general_chat_answers_where_no_other_pack_is_installed(tiny_packs: dict[str, Path], cache: Path) -> None:
    alone = {name: path for name, path in tiny_packs.items() if name != "python_code"}
    with build(EngineConfig(cache_dir=cache), catalog=catalog_of(alone)) as host:
        assert host.budget.slot_bytes == 0
        assert say(host, [HELLO])


def test_general_chat_may_be_larger_than_every_slot(tiny_packs: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    large = write_pack(tmp_path / "general_chat", manifest("general_chat", "system", replace(PACK, layers=6)))
    with build(EngineConfig(cache_dir=cache), catalog=catalog_of({**tiny_packs, "general_chat": large})) as host:
        assert say(host, [HELLO])
        assert text_of(list(host.chat([HELLO], GREEDY, packs=["python"])))


def test_a_pack_too_big_for_the_memory_is_refused_and_the_others_run(
    tiny_packs: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    big = write_pack(tmp_path / "big", manifest("big", "domain", replace(PACK, layers=6)))
    shutil.copy(tiny_packs["python_code"] / "routing.safetensors", big / "routing.safetensors")
    catalog = catalog_of({**tiny_packs, "big": big})
    config = EngineConfig(cache_dir=cache, hot_tokens=1024)
    with build(config, catalog=catalog) as host:
        assert "big" not in host.lineup.refused
        budget = host.budget
    hot_pages = budget.page_count - WINDOW.trained_tokens // 16 - 1  # these would give way first
    less = budget.planned_bytes - hot_pages * budget.page_bytes - 1
    with build(replace(config, memory_bytes=less), catalog=catalog) as host:
        assert "big" in host.lineup.refused
        assert say(host, [HELLO])
        with pytest.raises(InputError, match="a slot holds"):
            list(host.chat([HELLO], GREEDY, packs=["big"]))


def test_sequences_routed_to_one_pack_share_its_calls(small_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rows = small_host.engine, []
    with engine.slots.hold(["general_chat"]) as slots:
        pack = slots[0].content
        assert pack is not None
    run = pack.run
    monkeypatch.setattr(pack, "run", lambda hidden, calls, *rest: rows.append(len(calls)) or run(hidden, calls, *rest))
    engine.run_all([replace(request(small_host, seed), packs=()) for seed in range(4)])
    assert 4 in rows


def test_idle_conversations_do_not_starve_new_ones(small_host: Host) -> None:
    engine = small_host.engine
    for seed in range(25):
        assert engine.run_all([request(small_host, seed % 5)])


def test_an_empty_prompt_is_refused(small_host: Host) -> None:
    with pytest.raises(InputError, match="no tokens"):
        small_host.engine.submit(replace(request(small_host, 0), token_ids=[]))
