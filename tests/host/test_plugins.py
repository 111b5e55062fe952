"""A plugin in a running model: it is heard, it steers, and when it raises the turn goes on and the user is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.host import Host, build
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import plugin_manager
from modularbase_core.sdk import hookimpl
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed

GREEDY = SamplingConfig(temperature=0, max_tokens=3)
Building = Callable[..., Host]


@pytest.fixture
def built(tiny_packs: dict[str, Path], tmp_path: Path, cache: Path) -> Iterator[Building]:
    """Build models of the tiny set and a second domain pack, with one slot and plugins."""
    law = write_pack(tmp_path / "law", manifest("law", "domain", PACK), seed=9)
    hosts = []

    def make(*plugins: object) -> Host:
        manager = plugin_manager()
        for number, plugin in enumerate(plugins):
            manager.register(plugin, f"plugin-{number}")
        config = EngineConfig(cache_dir=cache, hot_tokens=1024, slots=1, prefetch=False)
        hosts.append(build(config, catalog=catalog_of({**tiny_packs, "law": law}), manager=manager))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def ask(host: Host, *messages: Message, packs: tuple[str, ...] = ()) -> tuple[Routed, Finished]:
    events = list(host.chat(messages, GREEDY, packs=packs))
    assert isinstance(events[0], Routed)
    assert isinstance(events[-1], Finished)
    return events[0], events[-1]


class Listener:
    def __init__(self) -> None:
        self.heard: list[object] = []

    @hookimpl
    def modularbase_pack_loaded(self, event: object) -> None:
        self.heard.append(event)

    modularbase_pack_evicted = modularbase_pack_loaded
    modularbase_turn_finished = modularbase_pack_loaded


def test_a_plugin_hears_of_loads_evictions_and_turns(built: Building) -> None:
    listener = Listener()
    host = built(listener)
    listener.heard.clear()
    ask(host, Message("user", "hello"), packs=("python_code",))
    ask(host, Message("user", "hello again"), packs=("law",))
    kinds = [type(event).__name__ for event in listener.heard]
    assert kinds == ["PackLoaded", "TurnFinished", "PackEvicted", "PackLoaded", "TurnFinished"]
    loaded, first, evicted, _, second = listener.heard
    assert (loaded.pack_id, loaded.prefetched) == ("python_code", False)  # type: ignore[attr-defined]
    assert loaded.size_bytes > 0  # type: ignore[attr-defined]
    assert (evicted.pack_id, evicted.successor) == ("python_code", "law")  # type: ignore[attr-defined]
    assert first.packs == {"python_code": 1.0}  # type: ignore[attr-defined]
    assert second.packs == {"law": 1.0}  # type: ignore[attr-defined]
    assert second.generated_tokens >= 1  # type: ignore[attr-defined]
    assert second.seconds > 0  # type: ignore[attr-defined]


class Chooser:
    @hookimpl
    def modularbase_scores(self, message: str, scores: dict[str, float]) -> dict[str, float]:
        return {"law": 1.0} if "court" in message else dict.fromkeys(scores, 0.0)

    @hookimpl
    def modularbase_route(self, message: str) -> list[str] | None:
        return ["python_code"] if message.startswith("py:") else None


def test_a_plugin_changes_scores_and_chooses_packs(built: Building) -> None:
    host = built(Chooser())
    assert [pack.id for pack in ask(host, Message("user", "a court"))[0].packs] == ["law"]
    assert [pack.id for pack in ask(host, Message("user", "hello"))[0].packs] == ["general_chat"]
    assert [pack.id for pack in ask(host, Message("user", "py: hello"))[0].packs] == ["python_code"]


class Broken:
    @hookimpl
    def modularbase_scores(self) -> None:
        raise RuntimeError("no scores")

    @hookimpl
    def modularbase_route(self) -> int:
        return 3

    @hookimpl
    def modularbase_turn_finished(self) -> None:
        raise SystemExit("no more")


def test_a_plugin_that_raises_costs_a_note_and_no_turn(built: Building) -> None:
    plain = ask(built(), Message("user", "hello"))[0]
    routed, finished = ask(built(Broken()), Message("user", "hello"))
    assert routed.packs == plain.packs
    notes = (*routed.notes, *finished.notes)
    assert [note.split(" (")[0] for note in notes] == [
        "plugin 'plugin-0' failed in modularbase_scores",
        "plugin 'plugin-0' answers modularbase_route with a value of type int where a list is wanted; "
        "its answer is left out",
        "plugin 'plugin-0' failed in modularbase_turn_finished",
    ]


class Protector:
    @hookimpl
    def modularbase_importance(self, text: str) -> float | None:
        return 1.0 if "remember" in text else None


@pytest.mark.parametrize("plugins", [(), (Protector(),)])
def test_what_a_plugin_calls_important_is_kept_exactly(built: Building, plugins: tuple[object, ...]) -> None:
    host = built(*plugins)
    messages = [Message("user", "please remember to water all of the plants " * 8), Message("assistant", "yes")]
    for number in range(8):
        filler = "tell me more about it if you please " + "abcdefgh"[number]
        messages += [Message("user", filler * 6), Message("assistant", "well")]
    list(host.chat([*messages, Message("user", "and now?")], GREEDY))
    tiers = host._conversation.sequence.tiers
    kept = [entry for entry in tiers.entries() if "remember" in host.tokenizer.decode(entry.tokens.tolist())]
    assert kept
    assert all((entry.form == "exact") == bool(plugins) for entry in kept)


def test_a_plugin_that_raises_while_a_message_is_only_routed_is_told(tiny_packs: dict[str, Path], cache: Path) -> None:
    catalog, manager = catalog_of(tiny_packs), plugin_manager()
    manager.register(Broken(), "broken")
    messages = Messages.open(EngineConfig(cache_dir=cache, hot_tokens=1024), catalog, hooks=hooks_of(catalog, manager))
    notes = messages.route("hello").notes
    assert [note.split(" ", 3)[:2] for note in notes] == [["plugin", "'broken'"]] * 2
