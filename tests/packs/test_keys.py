"""Routing keys: what queries say of whose a message is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.device.weights import Routing
from modularbase_core.packs.keys import (
    AGAINST_CENTRES,
    BACKGROUND,
    KEYS,
    TAKEN,
    apart,
    background_centres,
    keys_beside,
    nearness,
    routing_keys,
    scores,
)
from modularbase_core.turn.route import Routes

SIZE = 16
seeds = st.integers(0, 10_000)
few = st.integers(1, 12)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def directions(count, seed):
    """Messages about anything."""
    return unit(np.random.default_rng(seed).normal(size=(count, SIZE)))


def about(centre, count, seed, noise=0.15):
    """Messages about one thing."""
    return unit(centre + noise * np.random.default_rng(seed).normal(size=(count, SIZE)))


def scored(queries, made, background):
    return scores(queries, made["keys"], float(made["scale"][0]), float(made["bias"][0]), background)


CENTRE = directions(1, 1)
OTHERS = directions(400, 2)
BACK = background_centres(directions(300, 3))


@given(few, seeds)
def test_many_centres_are_not_nearer_than_few(count, seed):
    queries, centres = directions(5, seed), directions(count, seed + 1)
    near = nearness(queries, centres)
    cosines = queries @ centres.T
    assert near.shape == (5,)
    assert (near <= cosines.max(1) + 1e-5).all()
    assert (near >= cosines.mean(1) - 1e-5).all()
    assert near == pytest.approx(nearness(queries, np.concatenate([centres, centres])), abs=1e-5)


def test_one_centre_is_as_near_as_its_cosine_and_none_is_not_near():
    queries = directions(5, 0)
    assert nearness(queries, CENTRE) == pytest.approx((queries @ CENTRE.T)[:, 0], abs=1e-5)
    assert nearness(queries, np.empty((0, SIZE), np.float32)).tolist() == [0.0] * 5


@given(few, st.integers(0, 12), seeds, st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_a_score_lies_between_nothing_and_all_whatever_a_pack_ships(keys, background, seed, scale, bias):
    centres = directions(background, seed) if background else np.empty((0, SIZE), np.float32)
    got = scores(directions(6, seed + 1), directions(keys, seed + 2), scale, bias, centres)
    assert got.shape == (6,)
    assert ((got >= 0) & (got <= 1)).all()


@given(few, few, seeds)
def test_the_order_of_keys_and_of_the_background_changes_nothing(keys, background, seed):
    random = np.random.default_rng(seed)
    queries, centres, others = directions(6, seed), directions(keys, seed + 1), directions(background, seed + 2)
    got = scores(queries, centres, 8.0, -3.0, others)
    mixed = scores(queries, random.permutation(centres), 8.0, -3.0, random.permutation(others))
    assert mixed == pytest.approx(got, abs=1e-4)


@given(seeds, st.permutations("abcd"), st.sets(st.sampled_from("bcd")))
def test_what_else_is_installed_changes_no_bit_of_a_score(seed, order, there):
    packs = {name: Routing(directions(3, seed + number), 8.0, -3.0) for number, name in enumerate("abcd")}
    query = directions(1, seed + 9)[0]

    def score(names):
        return Routes(None, {name: packs[name] for name in names}, BACK, "a").scores(query)

    alone, among = score("a"), score([name for name in order if name in {"a", *there}])
    assert among["a"] == alone["a"]
    assert among.keys() == {"a", *there}


def test_keys_tell_a_packs_messages_from_others():
    made = routing_keys(about(CENTRE, 200, 4), OTHERS, BACK)
    assert made["keys"].shape == (KEYS, SIZE)
    assert made["keys"].dtype == made["scale"].dtype == made["bias"].dtype == np.float32
    assert np.linalg.norm(made["keys"], axis=1) == pytest.approx(np.ones(KEYS), abs=1e-5)
    assert (scored(about(CENTRE, 200, 5), made, BACK) > 0.5).mean() > 0.97
    assert (scored(directions(400, 6), made, BACK) < 0.5).mean() > 0.97


def test_a_pack_about_several_things_has_a_key_for_each():
    things = directions(4, 7)
    own = np.concatenate([about(thing, 20, number) for number, thing in enumerate(things)])
    made = routing_keys(own, OTHERS, BACK)
    assert ((things @ made["keys"].T).max(1) > 0.9).all()
    assert (scored(things, made, BACK) > 0.5).all()


def test_the_same_examples_give_the_same_keys():
    own = about(CENTRE, 60, 8)
    first, second = routing_keys(own, OTHERS, BACK), routing_keys(own.copy(), OTHERS, BACK)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@given(st.integers(1, 90), st.integers(1, 20))
def test_there_is_a_key_for_four_examples_and_no_more_than_asked_for(count, most):
    made = routing_keys(directions(count, count), OTHERS, BACK, keys=most)
    assert len(made["keys"]) == min(most, max(1, count // 4))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_a_pack_of_few_examples_answers_what_is_like_them_and_little_else(count):
    made = routing_keys(about(CENTRE, count, 9, noise=0.05), OTHERS, BACK)
    assert (scored(about(CENTRE, 50, 10, noise=0.05), made, BACK) > 0.5).all()
    assert (scored(directions(400, 6), made, BACK) > 0.5).mean() < 0.1


def test_few_examples_that_differ_look_no_surer_than_they_are():
    sure = routing_keys(about(CENTRE, 8, 9, noise=0.02), OTHERS, BACK)
    unsure = routing_keys(directions(8, 9), OTHERS, BACK)
    # each of eight unlike messages is near its own key, which says nothing of the ninth
    assert scored(directions(50, 11), unsure, BACK).max() < scored(CENTRE, sure, BACK)[0]


@pytest.mark.parametrize("count", [1, 2, 8, 100])
def test_identical_examples_make_keys_that_are_found(count):
    made = routing_keys(np.repeat(CENTRE, count, 0), OTHERS, BACK)
    assert scored(CENTRE, made, BACK)[0] > 0.8
    assert made["keys"] == pytest.approx(np.repeat(CENTRE, len(made["keys"]), 0), abs=1e-5)


@given(few, few, seeds, st.sampled_from([0.0, 1e-6, 0.1, 10.0]), st.integers(0, 3))
def test_every_fit_is_finite_and_near_means_likely(own, others, seed, noise, background):
    centres = directions(background, seed) if background else np.empty((0, SIZE), np.float32)
    made = routing_keys(about(CENTRE, own, seed, noise), about(CENTRE, others, seed + 1, noise), centres)
    assert all(np.isfinite(values).all() for values in made.values())
    assert 1.0 <= made["scale"][0] <= 100.0
    assert abs(made["bias"][0]) <= 1000.0


@pytest.mark.parametrize("sign", [1, -1])
def test_what_nothing_or_everything_tells_apart_keeps_a_scale_within_bounds(sign):
    # others lie opposite, or nearer to the keys than the pack's own
    opposite = np.repeat(-CENTRE, 5, 0) if sign > 0 else np.repeat(CENTRE, 5, 0)
    own = np.repeat(CENTRE, 5, 0) if sign > 0 else np.concatenate([about(CENTRE, 20, 3, 0.5), -CENTRE, -CENTRE])
    made = routing_keys(own, opposite, np.empty((0, SIZE), np.float32))
    assert 1.0 <= made["scale"][0] <= 100.0
    if sign > 0:
        assert scored(CENTRE, made, np.empty((0, SIZE), np.float32))[0] > 0.9
        assert scored(-CENTRE, made, np.empty((0, SIZE), np.float32))[0] < 0.1


def test_a_background_of_no_message_is_empty():
    empty = background_centres(np.empty((0, SIZE), np.float32))
    assert empty.shape == (0, SIZE)
    assert nearness(CENTRE, empty).tolist() == [0.0]


@pytest.mark.parametrize(("messages", "centres"), [(1, 1), (10, 10), (BACKGROUND, BACKGROUND), (300, BACKGROUND)])
def test_a_background_has_at_most_so_many_centres(messages, centres):
    got = background_centres(directions(messages, 5))
    assert got.shape == (centres, SIZE)
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(centres), abs=1e-5)


def test_a_pack_beside_others_leaves_them_their_messages_and_finds_its_own():
    own, theirs = (unit(directions(1, 4) + shift) for shift in (0.25 * directions(1, 5), 0.25 * directions(1, 6)))
    mine, beside = about(own, 200, 7, noise=0.1), about(theirs, 200, 8, noise=0.1)
    alone = routing_keys(mine, OTHERS, BACK)
    made = keys_beside(mine, OTHERS, beside, BACK, 0.3)
    assert made["against"].shape == (AGAINST_CENTRES, SIZE)
    new = about(theirs, 200, 9, noise=0.1)
    taken = scored(new, made, apart(BACK, made["against"])) >= 0.3
    assert taken.mean() <= 3 * TAKEN < (scored(new, alone, BACK) >= 0.3).mean()
    assert (scored(about(own, 200, 10, noise=0.1), made, apart(BACK, made["against"])) >= 0.3).mean() > 0.8


def test_what_a_pack_brings_against_others_is_background_for_it_alone():
    made = routing_keys(about(CENTRE, 40, 7), OTHERS, BACK)
    plain = Routing(made["keys"], float(made["scale"][0]), float(made["bias"][0]))
    guarded = Routing(plain.keys, plain.scale, plain.bias, against=directions(3, 11))
    got = Routes(None, {"a": plain, "b": guarded}, BACK, "a").scores(CENTRE[0])
    assert got["a"] == pytest.approx(float(scored(CENTRE, made, BACK)[0]))
    assert got["b"] == pytest.approx(float(scored(CENTRE, made, apart(BACK, guarded.against))[0]))
