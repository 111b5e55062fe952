"""Values by groups: what came from integers becomes the same values again, whatever bits their scales have."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modularbase_core.device.groups import dequantise_groups, dequantise_int4, pack_int4, quantise_groups

# scales of float16 have few bits where values are tiny, so those are drawn as often as ordinary ones
sizes = st.sampled_from([60000.0, 1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
matrices = st.tuples(
    sizes,
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
        elements=st.floats(-1, 1, width=32),
    ),
).map(lambda drawn: np.float32(drawn[0]) * drawn[1])


def counted(*values):
    """Return a group of these multiples of the least scale, the rest zeros."""
    return np.array([[*values, *[0] * (32 - len(values))]], np.float32) * np.float32(2**-24)


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=400)
@given(values=matrices)
@example(values=counted(381.5, 4))  # int8: 95 steps of 4, whose greatest would do with steps of 3
@example(values=counted(26, -4))  # int4: 3 or 4 steps, of which the greatest is rounded to fewer than 7
def test_what_came_from_integers_becomes_the_same_again(bits, values):
    once = dequantise_groups(*quantise_groups(values, bits))
    assert np.array_equal(dequantise_groups(*quantise_groups(once, bits)), once)


@given(values=matrices)
def test_the_greatest_int4_value_takes_nearly_the_whole_range(values):
    whole, scale = quantise_groups(values, 4)
    assert whole.min() >= -8
    assert whole.max() <= 7
    least = whole.reshape(*scale.shape, 32).min(-1)
    assert (least[scale != 0] <= -7).all()


@given(values=matrices)
def test_int4_is_no_worse_than_an_eighth_of_the_greatest_value(values):
    whole, scale = quantise_groups(values, 4)
    groups = values.reshape(*scale.shape, 32)
    back = dequantise_groups(whole, scale).reshape(groups.shape)
    square = np.square(np.abs(groups).max(-1) / 8)  # of one step; +8 steps are kept as 7
    assert (np.square(back - groups).sum(-1) <= 32 * square * 1.01 + 1e-10).all()


@given(arrays.arrays(np.int8, st.tuples(st.integers(0, 3), st.sampled_from([0, 32, 64])), elements=st.integers(-8, 7)))
def test_two_values_share_a_byte_the_first_in_its_low_half(whole):
    packed = pack_int4(whole)
    assert packed.shape == (len(whole), whole.shape[1] // 2)
    assert ((packed & 15).astype(int) - 8 == whole[:, 0::2]).all()
    assert ((packed >> 4).astype(int) - 8 == whole[:, 1::2]).all()
    scale = np.full((len(whole), whole.shape[1] // 32), 0.5, np.float16)
    assert np.array_equal(dequantise_int4(packed, scale), dequantise_groups(whole, scale))


def test_experts_are_quantised_as_each_alone():
    values = np.random.default_rng(4).normal(size=(3, 5, 64)).astype(np.float32)
    for bits in (8, 4):
        whole, scale = quantise_groups(values, bits)
        for expert in range(3):
            one = quantise_groups(values[expert], bits)
            assert np.array_equal(whole[expert], one[0])
            assert np.array_equal(scale[expert], one[1])
