"""Who answers a turn in the end: plugins' choice, packs that cannot be loaded, more packs than slots."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from feeding import new_sequence, random_tokens

from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.sdk.events import TurnFinished
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Event, Finished, Routed, Token


class Plugin:
    """Says what it is told to, and hears."""

    def __init__(
        self,
        scores: Mapping[str, float] | None = None,
        route: Sequence[str] | None = None,
        fallback: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._scores, self._route, self._fallback = scores, route, fallback or {}
        self.messages: list[str] = []
        self.finished: list[TurnFinished] = []

    @hookimpl
    def modularbase_scores(self, message: str) -> Mapping[str, float] | None:
        self.messages.append(message)
        return self._scores

    @hookimpl
    def modularbase_route(self) -> Sequence[str] | None:
        return self._route

    @hookimpl
    def modularbase_fallback(self, pack_id: str, candidates: Sequence[str]) -> Sequence[str] | None:
        return [pack for pack in self._fallback.get(pack_id, ()) if pack in candidates]

    @hookimpl
    def modularbase_turn_finished(self, event: TurnFinished) -> None:
        self.finished.append(event)


Wire = Callable[..., Parts]


def request(parts: Parts, *packs: str, message: str = "") -> Request:
    return Request(
        sequence=new_sequence(parts),
        token_ids=random_tokens(20),
        question=(0, 20),
        sampling=SamplingConfig(temperature=0, max_tokens=4, logprobs=0),
        packs=packs,
        message=message,
    )


def ask(parts: Parts, *packs: str, message: str = "") -> tuple[Routed, list[tuple[int, float | None]]]:
    """Answer a turn; return who did and what was said."""
    routed, *rest = parts.engine().run_all([request(parts, *packs, message=message)])[0]
    assert isinstance(routed, Routed)
    assert isinstance(rest[-1], Finished)
    assert sum(pack.weight for pack in routed.packs) == pytest.approx(1)
    return routed, said(rest)


def said(events: Sequence[Event]) -> list[tuple[int, float | None]]:
    return [(event.token_id, event.logprob) for event in events if isinstance(event, Token)]


def ids(routed: Routed) -> list[str]:
    return [pack.id for pack in routed.packs]


@pytest.fixture
def broken(four_packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """Copy packs with truncated weights."""

    def break_packs(*names: str) -> dict[str, Path]:
        copies, folder = {}, tmp_path_factory.mktemp("broken")
        for name in names:
            copies[name] = shutil.copytree(four_packs[name], folder / name)
            weights = copies[name] / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        return {**four_packs, **copies}

    return break_packs


def test_scores_that_a_plugin_changes_decide_with_the_threshold(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    plugin = Plugin(scores={"law": 0.71, "poetry": 0.69, "python_code": 0.2, "general_chat": 0.1})
    routed, _ = ask(parts_of(four_packs, plugin, threshold=0.7, packs_per_turn=3), message="May I?")
    assert ids(routed) == ["law"]
    assert routed.packs[0].reason == "over the threshold 0.7"
    assert routed.scores["poetry"] == 0.69
    assert plugin.messages == ["May I?"]
    routed, _ = ask(parts_of(four_packs, plugin, threshold=0.6, packs_per_turn=3))
    assert ids(routed) == ["law", "poetry"]
    assert not routed.abstained
    routed, _ = ask(parts_of(four_packs, plugin, threshold=0.9))
    assert ids(routed) == ["general_chat"]
    assert routed.packs[0].reason == "no pack reached 0.9"
    assert routed.abstained


def test_a_plugins_choice_of_packs_counts_in_place_of_the_routers(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    plugin = Plugin(scores={"python_code": 0.99}, route=["poetry", "law"])
    routed, _ = ask(parts_of(four_packs, plugin))
    assert [(pack.id, pack.weight, pack.reason) for pack in routed.packs] == [
        ("poetry", 0.5, "chosen by plugin plugin0"),
        ("law", 0.5, "chosen by plugin plugin0"),
    ]


def test_plugins_are_not_asked_about_packs_that_the_user_named(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    plugin = Plugin(scores={"poetry": 0.99}, route=["poetry"])
    routed, _ = ask(parts_of(four_packs, plugin), "law")
    assert ids(routed) == ["law"]
    assert routed.packs[0].reason == "forced"
    assert plugin.messages == []


def test_a_named_pack_that_cannot_be_loaded_gives_way_and_the_others_stay(
    parts_of: Wire, broken: Callable[..., dict[str, Path]]
) -> None:
    parts = parts_of(broken("python_code"))
    routed, tokens = ask(parts, "python_code", "law")
    assert [(pack.id, pack.reason) for pack in routed.packs] == [
        ("general_chat", "python_code cannot be loaded"),
        ("law", "forced"),
    ]
    (note,) = routed.notes
    assert note.startswith("python_code cannot be loaded (")
    assert note.endswith("; general_chat answers in its place")
    assert tokens == ask(parts, "general_chat", "law")[1]


def test_a_plugin_names_who_stands_in_and_one_that_fails_too_falls_further(
    parts_of: Wire, broken: Callable[..., dict[str, Path]]
) -> None:
    plugin = Plugin(fallback={"python_code": ["law", "poetry"], "law": ["python_code", "poetry"]})
    routed, tokens = ask(parts_of(broken("python_code"), plugin), "python_code")
    assert ids(routed) == ["law", "poetry"]
    assert routed.notes[0].endswith("law and poetry answer in its place")
    parts = parts_of(broken("python_code", "law"), plugin)
    routed, tokens = ask(parts, "python_code")
    assert ids(routed) == ["poetry"]  # python_code has failed already, so it is no candidate
    assert len(routed.notes) == 2
    assert tokens == ask(parts, "poetry")[1]


def test_general_chat_alone_answers_where_nothing_else_can_be_loaded(
    parts_of: Wire, broken: Callable[..., dict[str, Path]]
) -> None:
    plugin = Plugin(route=["python_code", "law"], fallback={"python_code": ["poetry"], "law": ["poetry"]})
    routed, _ = ask(parts_of(broken("python_code", "law", "poetry"), plugin))
    assert ids(routed) == ["general_chat"]
    assert routed.packs[0].weight == pytest.approx(1)
    assert len(routed.notes) == 3


def test_more_packs_than_slots_are_trimmed_by_weight_and_told(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    plugin = Plugin(scores={"general_chat": 0.6, "law": 0.9, "python_code": 0.7, "poetry": 0.8})
    parts = parts_of(four_packs, plugin, slots=2, packs_per_turn=4)
    routed, _ = ask(parts)
    assert ids(routed) == ["law", "poetry", "general_chat"]  # which is resident, so that it takes no slot
    assert [pack.weight for pack in routed.packs] == pytest.approx([0.9 / 2.3, 0.8 / 2.3, 0.6 / 2.3])
    (note,) = routed.notes
    assert "left out: python_code" in note
    assert "2 slots" in note
    assert ask(parts)[0] == routed


def test_named_packs_are_trimmed_too_and_the_next_turn_works(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    parts = parts_of(four_packs, slots=1)
    engine = parts.engine()
    routed = engine.run_all([request(parts, "law", "poetry", "general_chat")])[0][0]
    assert isinstance(routed, Routed)
    assert [(pack.id, pack.weight) for pack in routed.packs] == [("law", 0.5), ("general_chat", 0.5)]
    assert "left out: poetry" in routed.notes[0]
    routed = engine.run_all([request(parts, "poetry")])[0][0]  # law is evicted
    assert isinstance(routed, Routed)
    assert ids(routed) == ["poetry"]
    assert routed.notes == ()


def test_a_route_that_does_not_fit_beside_others_waits_for_them(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    parts = parts_of(four_packs, slots=1)
    engine = parts.engine()
    wanted = [said(engine.run_all([request(parts, pack)])[0]) for pack in ("law", "poetry")]
    first, second = (engine.submit(request(parts, pack)) for pack in ("law", "poetry"))
    engine.step()
    engine.step()
    assert first.events
    assert not second.events
    while not second.finished:
        engine.step()
        assert not second.events or first.finished
    assert [said(list(one.events)) for one in (first, second)] == wanted


def test_a_waiting_route_is_trimmed_to_all_slots_not_to_the_free_ones(
    parts_of: Wire, four_packs: dict[str, Path]
) -> None:
    parts = parts_of(four_packs, slots=2)
    _, two = parts.engine().run_all([request(parts, "python_code"), request(parts, "law", "poetry")])
    assert isinstance(two[0], Routed)
    assert ids(two[0]) == ["law", "poetry"]
    assert two[0].notes == ()


def test_plugins_hear_of_every_turn_that_ends_once(parts_of: Wire, four_packs: dict[str, Path]) -> None:
    plugin = Plugin(scores={"law": 0.8})
    parts = parts_of(four_packs, plugin, slots=1)
    engine = parts.engine()
    engine.run_all([request(parts)])
    (event,) = plugin.finished
    assert (event.packs, event.scores["law"], event.reason) == ({"law": 1.0}, 0.8, "length")
    assert (event.prompt_tokens, event.generated_tokens) == (20, 4)
    assert event.seconds > 0
    stream = engine.stream(request(parts, "poetry"))
    next(stream)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [one.reason for one in plugin.finished] == ["length", "cancelled"]
    assert plugin.finished[-1].packs == {"poetry": 1.0}
    engine.cancel(engine.submit(request(parts)))  # it never began
    assert len(plugin.finished) == 2


class Deaf(Plugin):
    """Fails whenever it is told or asked something."""

    @hookimpl
    def modularbase_scores(self, message: str) -> Mapping[str, float] | None:
        raise ValueError("no score")

    @hookimpl
    def modularbase_turn_finished(self, event: TurnFinished) -> None:
        raise OSError("no ear")


def test_what_goes_wrong_in_plugins_is_told_with_the_turn_and_stops_nothing(
    parts_of: Wire, four_packs: dict[str, Path]
) -> None:
    parts = parts_of(four_packs, Deaf())
    engine: Engine = parts.engine()
    for _ in range(2):
        routed, *_, finished = engine.run_all([replace(request(parts), sequence=new_sequence(parts))])[0]
        assert isinstance(routed, Routed)
        assert isinstance(finished, Finished)
        assert finished.generated_tokens == 4
    told = [*routed.notes, *finished.notes]
    assert any("plugin0" in note and "no score" in note for note in routed.notes)
    assert any("plugin0" in note and "no ear" in note for note in finished.notes)
    assert len(told) == 2
