"""Numbers are read by their value, however they are written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.evaluate.numbers import numbers_in, whole_number

wholes = st.integers(-(10**12), 10**12)
decimals = st.decimals(-(10**9), 10**9, places=2, allow_nan=False, allow_infinity=False)

WAYS = [
    "{:,}",
    "{:,}.0",
    "{:,}.",
    "{}.00",
    "{} apples",
    "{:,} km/h",
    "{} %",
    "{}%",
    "${:,}",
    "€ {}",
    "${:,}.00",
    "{} square metres",
    "  {:,}  ",
    "{}/1",
    "{} m²",
]


@pytest.mark.parametrize("way", WAYS)
@given(wholes)
def test_the_way_that_a_number_is_written_makes_no_difference(way, number):
    text = way.format(number)
    assert whole_number(text) == number
    assert numbers_in(text) == [number]
    assert numbers_in(f"So there are {text} in all.")[0] == number
    assert whole_number(text.replace("-", "−")) == number


@given(decimals)
def test_decimals_keep_their_digits_and_lose_their_trailing_zeros(number):
    assert whole_number(f"{number}") == Fraction(number)
    assert whole_number(f"{number:,}000") == Fraction(number)
    assert whole_number(f"${number:,}") == Fraction(number)


@given(st.lists(wholes, max_size=6))
def test_numbers_come_in_order(numbers):
    assert numbers_in("; ".join(f"{number:,}" for number in numbers)) == numbers
    assert numbers_in(", ".join(map(str, numbers))) == numbers


@given(wholes, st.integers(1, 10**6))
def test_ratios_are_divided(over, under):
    assert whole_number(f"{over}/{under}") == Fraction(over, under)


@given(st.text())
def test_any_text_has_some_numbers_or_none(text):
    for value in numbers_in(text):
        assert isinstance(value, Fraction)
    found = whole_number(text)
    assert found is None or numbers_in(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5-3 = 2", [5, 3, 2]),
        ("x = -3", [-3]),
        ("$-5 or -$5", [-5, -5]),
        ("18/3 = 6", [6, 6]),
        ("1 1/2 cups", [Fraction(3, 2)]),
        ("1/0", [1]),
        (".5 and 1e3 and 2.5E-1", [Fraction(1, 2), 1000, Fraction(1, 4)]),
        ("３４ 和 １，０００", [34, 1000]),
        ("GPT4, v2.5 and 0x1F", []),
        ("9" * 80, []),
        ("1/" + "9" * 80, []),
        ("1,2,3", [1]),
        ("no number", []),
    ],
)
def test_what_is_a_number_and_what_is_not(text, numbers):
    assert numbers_in(text) == numbers


@pytest.mark.parametrize("text", ["", "apples", "12:30", "5 - 3", "1, 2", "about 5", "5 red and green apples", "v2"])
def test_a_text_that_is_more_than_a_number_is_none(text):
    assert whole_number(text) is None
