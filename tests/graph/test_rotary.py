"""The table of angles, against the formula."""

import math

import pytest

from modularbase_core.graph.rotary import rotary_table


@pytest.mark.parametrize(("position", "pair"), [(0, 0), (17, 3), (1023, 31)])
def test_an_entry_is_the_angle_of_its_token_and_frequency(position, pair):
    table = rotary_table(1024, 64, 10000.0)
    assert table.shape == (64, 64, 16)
    angle = position * 10000.0 ** (-2 * pair / 64)
    page, token = divmod(position, 16)
    assert table[page, pair, token] == pytest.approx(math.cos(angle), abs=1e-7)
    assert table[page, 32 + pair, token] == pytest.approx(math.sin(angle), abs=1e-7)
