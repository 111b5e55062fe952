"""Packs that are installed but not chosen change nothing; packs that come back know what they missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from feeding import difference, fed, new_sequence, random_tokens
from tiny_packs import WINDOW

from modularbase_core.engine.request import Request
from modularbase_core.host import Parts
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Routed

FULLY_VISIBLE = WINDOW.sink_tokens + WINDOW.recent_tokens + WINDOW.block_tokens


class Scoring:
    """A plugin that scores packs as it is told; those that are not installed do not matter."""

    def __init__(self, **scores: float) -> None:
        self._scores = scores

    @hookimpl
    def modularbase_scores(self, message: str, scores: Mapping[str, float]) -> Mapping[str, float]:
        return self._scores


def answered(parts: Parts) -> tuple[list[tuple[str, float]], list[np.ndarray]]:
    """Route a message and answer it; return the route and the logits of the prompt's end and of ten tokens."""
    engine, sequence, token_ids = parts.engine(), new_sequence(parts), random_tokens(50)
    logits: list[np.ndarray] = []
    engine.understanding.ingest(sequence, token_ids[:40])
    sequence.route = engine.routes.choose(sequence, 0, token_ids[:40])
    with engine.slots.hold(sequence.route.ids) as slots:
        placed = {slot.pack_id: slot.content for slot in slots}
        logits.append(engine.decoding.prefill(sequence, placed).copy())
        logits.extend(engine.decoding.step([sequence], [token], placed)[0].copy() for token in token_ids[40:])
    return [(pack.id, pack.weight) for pack in sequence.route.packs], logits


@pytest.mark.parametrize(("packs_per_turn", "fusion"), [(1, "mean"), (2, "mean"), (2, "attention"), (2, "primary")])
def test_a_third_pack_that_is_not_chosen_changes_no_bit(
    parts_of: Callable[..., Parts], four_packs: dict[str, Path], packs_per_turn: int, fusion: str
) -> None:
    settings = {"packs_per_turn": packs_per_turn, "fusion": fusion}
    scoring = Scoring(python_code=0.9, law=0.6, poetry=0.55, general_chat=0.1)
    fewer = {name: path for name, path in four_packs.items() if name != "poetry"}
    route, logits = answered(parts_of(fewer, scoring, **settings))
    assert [pack for pack, _ in route] == ["python_code", "law"][:packs_per_turn]
    route_beside, logits_beside = answered(parts_of(four_packs, scoring, **settings))
    assert route_beside == route
    for one, other in zip(logits_beside, logits, strict=True):
        assert np.array_equal(one, other)


def test_installing_a_pack_changes_no_score_of_the_others(
    parts_of: Callable[..., Parts], four_packs: dict[str, Path]
) -> None:
    scores = []
    for left_out in ("poetry", "nothing"):
        parts = parts_of({name: path for name, path in four_packs.items() if name != left_out})
        engine, sequence = parts.engine(), new_sequence(parts)
        engine.understanding.ingest(sequence, random_tokens(40))
        scores.append(engine.routes.choose(sequence, 0, random_tokens(40)).scores)
    assert scores[1].pop("poetry") is not None
    assert scores[0] == scores[1]


def test_a_choice_that_a_new_pack_changes_is_told(parts_of: Callable[..., Parts], four_packs: dict[str, Path]) -> None:
    told = []
    for left_out in ("poetry", "nothing"):
        parts = parts_of(
            {name: path for name, path in four_packs.items() if name != left_out},
            Scoring(python_code=0.6, law=0.2, poetry=0.95, general_chat=0.1),
            threshold=0.5,
        )
        asked = Request(
            sequence=new_sequence(parts),
            token_ids=random_tokens(20),
            question=(0, 20),
            sampling=SamplingConfig(temperature=0, max_tokens=2),
        )
        routed = parts.engine().run_all([asked])[0][0]
        assert isinstance(routed, Routed)
        told.append([(pack.id, pack.score, pack.reason) for pack in routed.packs])
    assert told == [
        [("python_code", 0.6, "over the threshold 0.5")],
        [("poetry", 0.95, "over the threshold 0.5")],
    ]


def test_a_pack_evicted_in_a_conversation_comes_back_as_if_it_had_stayed(
    parts_of: Callable[..., Parts], four_packs: dict[str, Path]
) -> None:
    token_ids = random_tokens(FULLY_VISIBLE)
    turns = [("python_code", 30), ("law", 30), ("python_code", 20)]  # law takes python_code's place, if there is one
    ends, stayed = [], []
    for slots in (2, 1):
        parts = parts_of(four_packs, slots=slots)
        engine, sequence, done = parts.engine(), new_sequence(parts), 0
        for pack, count in turns:
            stayed.append("python_code" in engine.slots.loaded())
            logits = fed(engine, sequence, token_ids[done : done + count], pack, [count - 3, 1, 1, 1])
            done += count
        ends.append(logits)
    assert stayed == [False, True, True, False, True, False]
    assert done <= FULLY_VISIBLE
    assert difference(ends[1], ends[0]) <= 1e-4
