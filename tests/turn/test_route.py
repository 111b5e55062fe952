"""Scores to routes: who is chosen and why, who is left out for want of slots, who stands in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.turn.route import choose, force, stand_in, trim

PACKS = "abcdef"
scores_of_some = st.dictionaries(st.sampled_from(PACKS), st.floats(0, 1), max_size=6)


@given(scores_of_some, st.floats(0, 1), st.integers(1, 4))
def test_the_best_packs_over_the_threshold_answer_with_weights_by_their_scores(scores, threshold, most):
    route = choose(scores, "chat", threshold=threshold, packs_per_turn=most)
    over = sorted((score for score in scores.values() if score >= threshold), reverse=True)
    assert route.scores == scores
    assert sum(pack.weight for pack in route.packs) == pytest.approx(1)
    assert route.abstained is (not over)
    if route.abstained:
        assert route.ids == ("chat",)
        assert route.packs[0].reason == f"no pack reached {threshold:g}"
    else:
        assert [pack.score for pack in route.packs] == over[:most]
        assert {pack.reason for pack in route.packs} == {f"over the threshold {threshold:g}"}
        weights = [pack.weight for pack in route.packs]
        assert weights == sorted(weights, reverse=True)


def test_scores_that_are_all_zero_share_equally():
    route = choose({"a": 0.0, "b": 0.0}, "chat", threshold=0, packs_per_turn=2)
    assert [(pack.id, pack.weight) for pack in route.packs] == [("a", 0.5), ("b", 0.5)]


@given(scores_of_some, st.dictionaries(st.sampled_from("uvw"), st.floats(0, 0.4)), st.integers(1, 4))
def test_packs_below_the_threshold_change_neither_choice_nor_weight(scores, others, most):
    before = choose(scores, "chat", threshold=0.5, packs_per_turn=most)
    after = choose({**others, **scores}, "chat", threshold=0.5, packs_per_turn=most)
    assert after.packs == before.packs


def test_named_packs_share_equally_each_once_and_the_first_one_leads():
    route = force(["b", "a", "b"])
    assert [(pack.id, pack.weight, pack.score, pack.reason) for pack in route.packs] == [
        ("b", 0.5, None, "forced"),
        ("a", 0.5, None, "forced"),
    ]
    assert not route.abstained


@given(st.dictionaries(st.sampled_from(PACKS), st.floats(0.5, 1), min_size=2), st.data())
def test_those_left_out_leave_their_weight_to_the_others_in_proportion(scores, data):
    route = choose(scores, "chat", threshold=0.5, packs_per_turn=6)
    kept = data.draw(st.sets(st.sampled_from(route.ids), min_size=1))
    left = trim(route, kept, 1)
    assert left.ids == tuple(pack for pack in route.ids if pack in kept)
    assert sum(pack.weight for pack in left.packs) == pytest.approx(1)
    total = sum(scores[pack] for pack in kept)
    for pack in left.packs:
        assert pack.weight == pytest.approx(scores[pack.id] / total)
    assert len(left.notes) == (set(route.ids) != kept)
    assert all(pack in left.notes[0] for pack in set(route.ids) - kept)


def test_a_pack_that_stands_in_takes_the_share_and_tells_for_whom():
    route = choose({"a": 0.9, "b": 0.6, "c": 0.2}, "chat", threshold=0.5, packs_per_turn=2)
    after = stand_in(route, "a", ["c"], "a is ill")
    assert [(pack.id, pack.score, pack.reason) for pack in after.packs] == [
        ("c", 0.2, "a cannot be loaded"),
        ("b", 0.6, "over the threshold 0.5"),
    ]
    assert [pack.weight for pack in after.packs] == [pack.weight for pack in route.packs]
    assert after.notes == ("a is ill",)


def test_a_pack_that_answers_anyway_takes_the_share_of_the_one_it_stands_in_for():
    route = choose({"a": 0.9, "b": 0.75, "c": 0.6}, "chat", threshold=0.5, packs_per_turn=3)
    after = stand_in(route, "a", ["c"], "a is ill")
    assert after.ids == ("c", "b")
    assert [pack.weight for pack in after.packs] == pytest.approx([1.5 / 2.25, 0.75 / 2.25])


def test_several_that_stand_in_share_what_the_missing_one_had():
    route = choose({"a": 0.9, "b": 0.6, "c": 0.2}, "chat", threshold=0.5, packs_per_turn=2)
    after = stand_in(route, "a", ["c", "chat"], "a is ill")
    assert after.ids == ("b", "c", "chat")
    assert [pack.weight for pack in after.packs] == pytest.approx([0.4, 0.3, 0.3])
