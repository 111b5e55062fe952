"""Kernels of a quantised mixture: who goes to which expert, products of each expert's own rows, and their sum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import arrange
from modularbase_core.graph.ops import choose
from modularbase_core.graph.quantised import moe_groups
from tests.compiler.test_quantised_kernels import RUNNABLE, compiling_for, random, relative, run_quantise, tensor, zeros

EXPERTS, WIDTH, FFN = 4, 64, 32
few = settings(max_examples=12, deadline=None)


@pytest.fixture(scope="module", params=RUNNABLE)
def make(request):
    return compiling_for(request.param)


def routed(make, logits, chosen):
    pairs = len(logits) * chosen
    out = [zeros(pairs, "int32"), zeros(EXPERTS + 1, "int32"), zeros(pairs, "float32")]
    make("route", EXPERTS, chosen)(tensor(logits), *out)
    return out


def run_mixture(make, x, logits, gate_up, down, chosen, bits):
    """Run the kernels one after the other; matrices come as they lie in memory."""
    order, first, gates = routed(make, logits, chosen)
    pairs = len(x) * chosen
    made, parts, y = (zeros(shape, "float32") for shape in ((pairs, 2 * FFN), (pairs, WIDTH), (len(x), WIDTH)))
    quantised = run_quantise(make, x, bits)
    make("expert_groups", 2 * FFN, WIDTH, bits, experts=EXPERTS, shared=chosen)(
        *quantised, tensor(gate_up), order, first, made
    )
    activated = run_quantise(make, made.numpy(), bits, form="swiglu", width=FFN)
    make("expert_groups", WIDTH, FFN, bits, experts=EXPERTS, shared=1)(*activated, tensor(down), order, first, parts)
    make("combine", chosen, WIDTH)(gates, parts, y)
    return y.numpy()


def definition(x, logits, gate_up, down, chosen, bits):
    matrices = [np.ascontiguousarray(one) for w in (gate_up, down) for one in quantise_groups(w, bits)]
    return moe_groups(*map(torch.from_numpy, (x, logits, *matrices)), chosen, "swiglu", bits).numpy()


def weights():
    return random(EXPERTS, 2 * FFN, WIDTH, seed=1), random(EXPERTS, WIDTH, FFN, seed=2)


def assert_listed(order, first, gates, logits, chosen):
    """Pairs stand by the expert that torch chooses, with its gates."""
    ids, expected = choose(torch.from_numpy(logits), chosen)
    assert sorted(order) == list(
        range(len(logits) * chosen)
    )  # every pair once: no token is dropped, none is paid twice
    for expert in range(logits.shape[1]):
        of_expert = order[first[expert] : first[expert + 1]]
        assert list(of_expert) == list(np.flatnonzero(ids.flatten().numpy() == expert))
    np.testing.assert_allclose(gates, expected.flatten().numpy(), rtol=1e-6)


@few
@given(rows=st.integers(1, 40), chosen=st.integers(1, 3), seed=st.integers(0, 99))
def test_rows_are_listed_by_the_experts_that_torch_chooses(make, rows, chosen, seed):
    logits = random(rows, EXPERTS, seed=seed)
    order, first, gates = (one.numpy() for one in routed(make, logits, chosen))
    assert_listed(order, first, gates, logits, chosen)


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(rows=st.integers(1, 40), chosen=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_mixture_is_its_definition(make, bits, rows, chosen, seed):
    x, logits, (gate_up, down) = random(rows, WIDTH, seed=seed), random(rows, EXPERTS, seed=seed + 1), weights()
    packed = [arrange(one, f"n32q{bits}") for one in (gate_up, down)]
    got = run_mixture(make, x, logits, *packed, chosen, bits)
    # a last bit of an activation may tip a value over to the next integer
    assert relative(got, definition(x, logits, gate_up, down, chosen, bits)) < 1e-2


def test_a_row_gets_the_same_bits_in_any_company(make):
    x, logits, packed = random(37, WIDTH), random(37, EXPERTS, seed=3), [arrange(one, "n32q8") for one in weights()]
    together = run_mixture(make, x, logits, *packed, 2, 8)
    for row in (0, 17, 36):
        alone = run_mixture(make, x[row : row + 1], logits[row : row + 1], *packed, 2, 8)
        assert np.array_equal(alone[0], together[row])


def test_experts_that_no_row_chose_are_not_read(make):
    x, logits = random(9, WIDTH), np.tile(np.array([0, 5, -5, 4], np.float32), (9, 1))
    packed = [arrange(one, "n32q8") for one in weights()]
    expected = run_mixture(make, x, logits, *packed, 2, 8)
    for one in packed:
        by_expert = one.reshape(EXPERTS, -1, *one.shape[1:])
        by_expert[[0, 2]] = 255  # as scales: not a number
    assert np.array_equal(run_mixture(make, x, logits, *packed, 2, 8), expected)
