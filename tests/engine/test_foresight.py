"""Packs that are there before a turn waits for them: pins, routes known early, habits; and what that never changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request
from modularbase_core.errors import ConfigError
from modularbase_core.host import Host, build
from modularbase_core.packs.catalog import Catalog, plugin_manager
from modularbase_core.packs.prefetch import Prefetcher
from modularbase_core.sdk.events import PackEvicted, PackLoaded
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Token

GREEDY = SamplingConfig(temperature=0, max_tokens=6)


class AtOnce(Executor):
    """Copies in the caller's thread, so that a test knows what is in place."""

    def submit(self, work: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work())
        return future


@pytest.fixture(scope="module")
def catalog(tiny_packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("more")
    more = {name: write_pack(root / name, manifest(name, "domain", PACK), seed) for seed, name in enumerate("abc", 7)}
    return catalog_of({**tiny_packs, **more})


@pytest.fixture
def config(cache: Path) -> EngineConfig:
    return EngineConfig(cache_dir=cache, hot_tokens=2048)


@pytest.fixture
def host(config: EngineConfig, catalog: Catalog) -> Iterator[Host]:
    with build(config, catalog=catalog) as made:
        made.engine.prefetcher = Prefetcher(made.engine.slots, runner=AtOnce)
        yield made


def say(host: Host, text: str, *packs: str) -> str:
    events = list(host.chat([Message("user", text)], GREEDY, packs=packs or None))
    return "".join(event.text for event in events if isinstance(event, (Token, Finished)))


def request(host: Host, *packs: str, max_tokens: int = 6) -> Request:
    sampling = replace(GREEDY, max_tokens=max_tokens)
    return Request(sequence=host.sequence(), token_ids=[7, 8, 9], question=(0, 3), sampling=sampling, packs=packs)


def test_pins_are_there_at_start_by_id_or_alias_and_stay(config: EngineConfig, catalog: Catalog) -> None:
    with build(replace(config, pins=("python", "general_chat"), prefetch=False), catalog=catalog) as host:
        assert host.engine.slots.loaded() == ["general_chat", "python_code"]
        for name in "abc":
            say(host, "hello", name)
        assert host.engine.slots.loaded() == ["general_chat", "c", "python_code"]


@pytest.mark.parametrize(
    ("pins", "told"),
    [
        (("a", "b"), r"pins names 'b', but b cannot be pinned: of 2 slots one must stay free"),
        (("nobody",), "pins names 'nobody', but no pack 'nobody' is installed"),
        (("tiny-base",), "pins names 'tiny-base', but .* does not run with this base"),
    ],
)
def test_pins_that_cannot_be_are_told_at_start(
    config: EngineConfig, catalog: Catalog, pins: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told), build(replace(config, pins=pins), catalog=catalog):
        pass


def test_packs_that_a_waiting_request_names_come_while_another_runs(host: Host) -> None:
    engine = host.engine
    running = engine.submit(request(host, "a"))
    engine.step()
    engine.submit(request(host, "b"))
    assert set(engine.slots.loaded()) == {"general_chat", "a", "b"}
    assert running.placed.keys() == {"a"}


def test_a_request_that_must_wait_gets_as_many_packs_as_there_is_room_for(host: Host) -> None:
    engine = host.engine
    engine.submit(request(host, "a"))
    engine.step()
    waiting = engine.submit(request(host, "b", "c"))
    engine.step()
    assert not waiting.placed
    assert set(engine.slots.loaded()) == {"general_chat", "a", "b"}
    while not waiting.finished:
        engine.step()
    assert waiting.placed.keys() == {"b", "c"}


def test_a_long_prompts_pack_comes_before_the_prompt_is_understood(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = host.engine, []
    understood = engine.understanding.step

    def step(token_ids, rows):
        seen.append(("a" in engine.slots.loaded(), len(token_ids)))
        return understood(token_ids, rows)

    monkeypatch.setattr(engine.understanding, "step", step)
    monkeypatch.setattr(engine.routes, "lean", lambda sequence, first, tokens: ("a",) if len(tokens) >= 32 else ())
    say(host, "word " * 100)
    before, after = seen[0], seen[-1]
    assert not before[0]
    assert after[0]


def test_a_habit_brings_the_next_pack_in_after_a_turn(host: Host) -> None:
    for _ in range(3):
        say(host, "hello", "a")
        say(host, "hello", "b")
        say(host, "hello", "c")
    say(host, "hello", "a")
    assert set(host.engine.slots.loaded()) == {"general_chat", "a", "b"}
    say(host, "hello", "b")
    assert set(host.engine.slots.loaded()) == {"general_chat", "b", "c"}


def test_answers_do_not_depend_on_what_was_prefetched(host: Host, config: EngineConfig, catalog: Catalog) -> None:
    turns = [("hello there", "a"), ("word " * 60, "b"), ("hello there", "c"), ("word " * 60, "a")]
    with build(replace(config, prefetch=False, slots=1), catalog=catalog) as plain:
        assert plain.engine.prefetcher is None
        wanted = [say(plain, text, pack) for text, pack in turns]
    assert [say(host, text, pack) for text, pack in turns] == wanted


def test_closing_ends_the_thread_and_keeps_the_history(
    config: EngineConfig, catalog: Catalog, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "artefacts").symlink_to(cache / "artefacts")
    before = threading.active_count()
    with build(replace(config, cache_dir=tmp_path), catalog=catalog) as host:
        for _ in range(2):
            say(host, "hello", "a")
            say(host, "hello", "b")
        assert threading.active_count() > before
    assert threading.active_count() == before
    with build(replace(config, cache_dir=tmp_path), catalog=catalog) as host:
        assert host.engine.prefetcher is not None
        assert host.engine.prefetcher._history.likely("a") == ["b"]


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_what_was_repacked_is_mapped_at_start_within_its_bounds(
    config: EngineConfig, catalog: Catalog, room: int
) -> None:
    with build(replace(config, prefetch=False), catalog=catalog) as host:
        say(host, "hello", "a")
    with build(replace(config, host_cache_bytes=room), catalog=catalog) as host:
        assert host.engine.prefetcher is not None
        host.engine.prefetcher.wait()
        assert (host._parts._places._repacked.held_bytes > 0) == (room > 0)
        assert host._parts._places._repacked.held_bytes <= room


def test_plugins_hear_who_comes_and_goes(config: EngineConfig, catalog: Catalog) -> None:
    heard: list[tuple[str, str] | tuple[str, bool]] = []

    class Ear:
        @hookimpl
        def modularbase_pack_loaded(self, event: PackLoaded) -> None:
            assert event.size_bytes > 0
            heard.append((event.pack_id, event.prefetched))

        @hookimpl
        def modularbase_pack_evicted(self, event: PackEvicted) -> None:
            heard.append((event.pack_id, event.successor))

    manager = plugin_manager()
    manager.register(Ear(), "ear")
    with build(replace(config, slots=1, prefetch=False), catalog=catalog, manager=manager) as host:
        say(host, "hello", "a")
        host.engine.slots.prefetch("b")
        assert heard == [("a", False)]
    assert heard == [("a", False), ("a", "b"), ("b", True)]
