"""Quantised layouts: every value lies where its layout says, and a layout holds no more than the other."""

import numpy as np
import pytest

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import arrange
from modularbase_core.device.metadata import ParameterMeta

ROWS, COLUMNS = 50, 96
VALUES = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def halves(byte):
    return byte & 15, byte >> 4


@pytest.mark.parametrize("bits", [8, 4])
def test_a_lane_of_a_gpu_finds_its_values_and_scales(bits):
    arranged, (whole, scale) = arrange(VALUES, f"t32q{bits}"), quantise_groups(VALUES, bits)
    for row, column in ((0, 0), (9, 5), (17, 40), (31, 95), (49, 63), (38, 16)):
        block, group = arranged[row // 32], column % 32
        lane, half = row % 8 * 4 + group % 16 // 4, row % 16 // 8
        if bits == 8:
            place = row % 32 // 16 * 512 + lane * 16 + (group // 16 * 2 + half) * 4 + group % 4
            found = block[column // 32, place]
        else:
            found = halves(block[column // 32, lane * 16 + (row % 32 // 16 * 2 + half) * 4 + group % 4])[group // 16]
        assert found == int(whole[row, column]) % (1 << bits)
        scales = block[column // 32, -64:].view(np.float16).reshape(8, 4)
        assert scales[row % 8, row % 32 // 8] == scale[row, column // 32]


@pytest.mark.parametrize("layout", ["n32q8", "n32q4", "t32q8", "t32q4"])
def test_a_stored_shape_is_that_of_the_arranged_matrix(layout):
    assert arrange(VALUES, layout).shape == ParameterMeta("w", "uint8", (ROWS, COLUMNS), layout).stored_shape
    experts = np.stack([VALUES] * 3)
    assert arrange(experts, layout).shape == ParameterMeta("w", "uint8", experts.shape, layout).stored_shape
