"""Shares of several packs: what each fusion promises, for any outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modularbase_core.sdk.fusion import Fusion
from modularbase_core.turn.fusions import AUXILIARY_SHARE, BUILTIN, MEAN, Shares, cosines

FUSIONS = {one.name: one for one in BUILTIN}
names = st.sampled_from(sorted(FUSIONS))
WIDTH = 8


def gram_of(outputs):
    """Inner products of outputs [T, N, E], divided by E."""
    return np.einsum("tpe,tqe->tpq", outputs, outputs).astype(np.float32) / outputs.shape[-1]


@st.composite
def turns(draw):
    """Weights, the heaviest first, and packs' outputs at some tokens."""
    count = draw(st.integers(2, 5))
    weights = np.sort(draw(arrays(np.float32, count, elements=st.floats(0.125, 1, width=32))))[::-1]
    outputs = np.random.default_rng(draw(st.integers(0, 999))).standard_normal((draw(st.integers(1, 6)), count, WIDTH))
    common = np.random.default_rng(draw(st.integers(0, 999))).standard_normal(WIDTH)
    return (weights / weights.sum()).astype(np.float32), outputs + draw(st.floats(0, 4)) * common


@given(names, turns(), st.sampled_from([-1.0, 0.0, 0.3, 0.9]))
def test_shares_are_never_negative_and_add_up_to_one(name, turn, limit):
    weights, outputs = turn
    shares = Shares(FUSIONS[name], limit)(weights, gram_of(outputs), len(outputs))
    assert shares.dtype == np.float32
    assert (shares >= -1e-6).all()
    assert np.allclose(shares.sum(1), 1, atol=1e-5)


@given(names, turns(), st.randoms(use_true_random=False))
def test_the_order_of_the_packs_beside_the_leader_changes_no_share(name, turn, random):
    weights, outputs = turn
    order = [0, *random.sample(range(1, len(weights)), len(weights) - 1)]
    shares = Shares(FUSIONS[name], 0.3)
    straight = shares(weights, gram_of(outputs), len(outputs))
    turned = shares(weights[order], gram_of(outputs[:, order]), len(outputs))
    assert np.allclose(straight[:, order], turned, atol=1e-5)


@given(names, turns())
def test_a_token_gets_the_same_bits_alone_and_in_company(name, turn):
    weights, outputs = turn
    gram, shares = gram_of(outputs), Shares(FUSIONS[name], 0.3)
    together = shares(weights, gram, len(outputs))
    for row in range(len(outputs)):
        assert np.array_equal(shares(weights, gram[row : row + 1], 1)[0], together[row])


@given(names, turns(), st.sampled_from([0.0, 1e-44, 1e-20, 1e30, 1e38, np.inf, np.nan]), st.booleans())
def test_extreme_outputs_leave_the_shares_finite(name, turn, factor, one_only):
    weights, outputs = turn
    gram = gram_of(outputs)
    with np.errstate(all="ignore"):
        if one_only:
            gram[:, 0, 1:] *= np.float32(factor)
            gram[:, :, 0] *= np.float32(factor)
        else:
            gram *= np.float32(factor)
    shares = Shares(FUSIONS[name], 0.3)(weights, gram, len(outputs))
    assert np.isfinite(shares).all()
    assert np.allclose(shares.sum(1), 1, atol=1e-5)


@given(names, turns())
def test_a_pack_that_contradicts_the_leader_gives_it_its_share(name, turn):
    weights, outputs = turn
    outputs[:, 1] = -outputs[:, 0]
    gram = gram_of(outputs)
    free = Shares(FUSIONS[name], -1)(weights, gram, len(outputs))
    silenced = Shares(FUSIONS[name], -0.99)(weights, gram, len(outputs))
    assert (silenced[:, 1] == 0).all()
    assert np.allclose(silenced[:, 0], free[:, 0] + free[:, 1], atol=1e-6)
    assert np.allclose(silenced[:, 2:], free[:, 2:])


@given(turns())
def test_packs_that_all_agree_keep_the_shares_that_they_were_routed_with(turn):
    weights, outputs = turn
    same = np.repeat(outputs[:, :1], len(weights), axis=1)
    shares = Shares(FUSIONS["attention"], 0.3)(weights, gram_of(same), len(same))
    assert np.allclose(shares, weights, atol=1e-5)


def test_attention_takes_from_a_loner_what_packs_that_agree_gain():
    outputs = np.zeros((1, 3, WIDTH))
    outputs[0, :2, 0] = outputs[0, 2, 1] = 5
    shares = Shares(FUSIONS["attention"], -1)(np.full(3, 1 / 3, np.float32), gram_of(outputs), 1)[0]
    assert shares[0] == shares[1] > 1 / 3 > shares[2]


@given(turns())
def test_packs_beside_the_primary_have_a_fixed_part_at_most_and_nothing_without_agreement(turn):
    weights, outputs = turn
    shares = Shares(FUSIONS["primary"], -1)(weights, gram_of(outputs), len(outputs))
    assert (shares[:, 1:].sum(1) <= AUXILIARY_SHARE + 1e-6).all()
    assert (shares[:, 1:] <= weights[1:] + 1e-6).all()
    against = cosines(gram_of(outputs))[:, 0] <= 0
    assert (shares[against] == 0).all()


def test_the_mean_compares_nothing_unless_contradictions_are_looked_for():
    assert not Shares(MEAN, -1).compares
    assert Shares(MEAN, 0.3).compares
    assert Shares(FUSIONS["primary"], -1).compares
    assert np.array_equal(Shares(MEAN, -1)(np.array([0.75, 0.25], np.float32), None, 3), [[0.75, 0.25]] * 3)


@pytest.mark.parametrize(
    ("weigh", "told"),
    [
        (lambda weights, gram: 1 / 0, "ZeroDivisionError"),
        (lambda weights, gram: np.ones(5), "shape"),
        (lambda weights, gram: weights * np.nan, "not finite"),
        (lambda weights, gram: "heavy", "ValueError"),
    ],
)
def test_a_fusion_that_fails_is_replaced_by_the_mean_and_told_once(weigh, told):
    shares, weights = Shares(Fusion("odd", weigh), -1), np.array([0.75, 0.25], np.float32)
    for _ in range(3):
        assert np.array_equal(shares(weights, None, 2), [weights, weights])
    (fault,) = shares.take_faults()
    assert "fusion 'odd' failed" in fault
    assert told in fault
    assert not shares.take_faults()
