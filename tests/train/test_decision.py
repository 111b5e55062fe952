"""New messages are led to the pack that most of them reach, or make a domain of their own where they cohere."""

import numpy as np
import pytest

from modularbase_core.device.weights import Background
from modularbase_core.errors import DataError
from modularbase_core.packs.keys import background_centres, grown_keys, held_back, routing_keys, scores
from modularbase_core.train.decision import coherence, decide

RANDOM = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(direction: int, count: int, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Queries about one thing."""
    rows = np.random.default_rng([seed, direction]).normal(0, spread, (count, 16))
    rows[:, direction] += 1
    return unit(rows)


OTHERS = unit(np.concatenate([around(one, 30, 0.3) for one in range(8)]))
BACKGROUND = Background(background_centres(OTHERS), OTHERS)
SETTINGS = {"general": "general_chat", "reach": 0.5, "threshold": 0.5}


def given(*chosen: tuple[str, int]) -> list[dict[str, float]]:
    """Scores of messages that reach a pack, "" for none."""
    packs = ("python_code", "legal")
    return [{pack: 0.9 if pack == one else 0.1 for pack in packs} for one, count in chosen for _ in range(count)]


def test_the_pack_that_most_messages_reach_learns_them():
    queries = around(9, 40)
    decision = decide(queries, given(("python_code", 25), ("", 12), ("legal", 3)), BACKGROUND, **SETTINGS)
    assert decision.pack == "python_code"
    assert decision.counts == {"python_code": 25, "general_chat": 12, "legal": 3}
    assert decision.why == "25 of 40 messages reach python_code already"
    assert not decision.notes


def test_another_pack_that_many_reach_is_told():
    decision = decide(around(9, 40), given(("python_code", 25), ("legal", 15)), BACKGROUND, **SETTINGS)
    assert decision.notes == ("15 of 40 messages reach legal; give its records by themselves, with --to legal",)


def test_messages_that_reach_no_pack_and_cohere_are_a_new_domain():
    decision = decide(around(9, 40), given(("", 30), ("legal", 10)), BACKGROUND, **SETTINGS)
    assert decision.pack is None
    assert decision.coherence > 0.9
    assert decision.why.startswith("30 of 40 messages reach no pack, over the threshold of 50%, and they cohere (")


def test_the_threshold_says_how_many_may_reach_none():
    half = given(("", 20), ("legal", 20))
    assert decide(around(9, 40), half, BACKGROUND, **SETTINGS).pack == "legal"
    assert decide(around(9, 40), half, BACKGROUND, **{**SETTINGS, "threshold": 0.4}).pack is None


def test_messages_of_everything_make_no_domain():
    mixed = unit(np.concatenate([around(one, 5, 0.3, seed=1) for one in range(8)]))
    with pytest.raises(
        DataError, match=r"40 of 40 messages reach no pack, and they cohere too little \(0\.\d\d of 0.5"
    ):
        decide(mixed, given(("", 40)), BACKGROUND, **SETTINGS)
    with pytest.raises(DataError, match="10 of 10 messages reach no pack, and they are fewer than 16 to make a domain"):
        decide(around(9, 10), given(("", 10)), BACKGROUND, **SETTINGS)
    assert coherence(mixed, Background(np.empty((0, 16), np.float32), np.empty((0, 16), np.float32)), 0.5) is None


def test_without_packs_all_reach_none():
    decision = decide(around(9, 40), [{}] * 40, BACKGROUND, **SETTINGS)
    assert decision.counts == {"general_chat": 40}
    assert decision.pack is None


def found(queries: np.ndarray, made: dict[str, np.ndarray]) -> float:
    own = scores(queries, made["keys"], float(made["scale"][0]), float(made["bias"][0]), BACKGROUND.centres)
    return float((own >= 0.5).mean())


def test_keys_that_grew_find_the_new_messages_and_the_old_ones_as_before():
    old, new = around(9, 80), around(11, 40)
    made = routing_keys(old, OTHERS, BACKGROUND.centres)
    grown = {**made, "keys": grown_keys(made["keys"], new)}
    assert len(grown["keys"]) == len(made["keys"]) + 4
    assert np.array_equal(grown["keys"][:-4], made["keys"])
    assert found(new, made) < 0.2
    assert found(around(11, 40, seed=2), grown) > 0.9
    assert found(around(9, 40, seed=2), grown) >= found(around(9, 40, seed=2), made) - 0.01
    assert found(OTHERS, grown) <= found(OTHERS, made) + 0.01


def test_a_pack_that_grows_often_keeps_at_most_so_many_keys():
    keys = around(9, 16)
    for seed in range(20):
        keys = grown_keys(keys, around(seed % 16, 20, seed=seed))
    assert len(keys) == 64
    assert np.allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-5)


def test_a_pack_that_is_held_back_takes_next_to_none_of_the_others():
    own = around(3, 100, 0.25, seed=5)  # what the others ask about too
    made = routing_keys(own, OTHERS, BACKGROUND.centres)
    back = held_back(made, OTHERS, BACKGROUND.centres, 0.5)
    assert found(OTHERS, back) <= 0.021 < found(OTHERS, made)
    lower = held_back(made, OTHERS, BACKGROUND.centres, 0.3)
    assert np.allclose(
        back["bias"] - lower["bias"], np.log(0.7 / 0.3), atol=1e-3
    )  # the same messages reach a lower bar
    alone = routing_keys(around(9, 100), OTHERS, BACKGROUND.centres)
    assert held_back(alone, OTHERS, BACKGROUND.centres, 0.5)["bias"] == alone["bias"]
