import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modularbase_core.context.codec import (
    FORMS,
    PageShapes,
    PageValues,
    decode,
    decode_many,
    encode,
    encode_many,
    encoded_bytes,
    transcode,
)

SMALL = PageShapes(hidden_size=8, understanding_layers=1, fusion_layers=1, kv_heads=2, head_size=4)
NANO = PageShapes(hidden_size=256, understanding_layers=2, fusion_layers=2, kv_heads=2, head_size=64)
SHAPES = (
    SMALL,
    NANO,
    PageShapes(hidden_size=24, understanding_layers=3, fusion_layers=2, kv_heads=1, head_size=80),
    PageShapes(hidden_size=16, understanding_layers=2, fusion_layers=0, kv_heads=4, head_size=32),
)
DENORMAL = float(np.float32(1e-42))
ODD = (0.0, 1e4, -1e4, 65504.0, 1e30, -1e30, DENORMAL, -DENORMAL, 1e-7, 6e-8, 1000.3)
numbers = st.one_of(st.sampled_from(ODD), st.floats(-8, 8, width=32), st.floats(-1e5, 1e5, width=32))
names = ("hidden", "understanding", "fusion")


def random_pages(shapes: PageShapes, count: int, dtype: type = np.float32, seed: int = 0) -> PageValues:
    random = np.random.default_rng(seed)
    each = (shapes.hidden, shapes.understanding, shapes.fusion)
    return PageValues(*(random.normal(size=(count, *shape)).astype(dtype) for shape in each))


def one(pages: PageValues, index: int) -> PageValues:
    return PageValues(pages.hidden[index], pages.understanding[index], pages.fusion[index])


@st.composite
def pages(draw: st.DrawFn, elements: st.SearchStrategy[float] = numbers) -> PageValues:
    each = (SMALL.hidden, SMALL.understanding, SMALL.fusion)
    return PageValues(*(draw(hnp.arrays(np.float32, shape, elements=elements, fill=numbers)) for shape in each))


def keys(tree: np.ndarray) -> np.ndarray:
    """[L, 2, K, 16 * D] to [L, K, D, 16]."""
    return tree[:, 0].reshape(*tree[:, 0].shape[:-1], -1, 16)


def rows(tree: np.ndarray) -> np.ndarray:
    """[L, 2, K, 16 * D] to [L, K, 16, D]."""
    return tree[:, 1].reshape(*tree[:, 1].shape[:-1], 16, -1)


def symmetric_bound(run: np.ndarray) -> np.ndarray:
    """Half a step, what float16 does to the scale, and what is below its smallest or above its largest."""
    largest = abs(run.astype(np.float64)).max(-1, keepdims=True)
    return largest / 127 * 0.57 + 127 * 2.0**-24 + np.maximum(largest - 127 * 65504, 0)


def asymmetric_bound(run: np.ndarray) -> np.ndarray:
    run = run.astype(np.float64)
    low, high = run.min(-1, keepdims=True), run.max(-1, keepdims=True)
    zero = np.clip(low, -65504, 65504)
    far = np.maximum(high - zero - 15 * 65504, 0) + abs(zero - low)
    return (high - low) / 15 * 0.51 + abs(zero) * 2.0**-10 + 16 * 2.0**-24 + far


def assert_within(got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> None:
    assert np.isfinite(got).all()
    assert (abs(got.astype(np.float64) - wanted) <= bound).all()


@given(pages(), st.sampled_from(FORMS), st.sampled_from([np.float32, np.float16]))
def test_no_number_becomes_infinite_or_none(values: PageValues, form: str, dtype: type) -> None:
    back = decode(encode(values, form), SMALL, form, dtype)
    for name in names:
        assert getattr(back, name).dtype == dtype
        assert np.isfinite(getattr(back, name)).all()


@given(pages(), st.sampled_from([np.float32, np.float16]))
def test_an_exact_page_comes_back_bit_for_bit(values: PageValues, dtype: type) -> None:
    stored = PageValues(*(np.clip(getattr(values, name), -65504, 65504).astype(dtype) for name in names))
    back = decode(encode(stored, "exact"), SMALL, "exact")
    for name in names:
        assert getattr(back, name).dtype == dtype
        assert np.array_equal(getattr(back, name), getattr(stored, name))


@settings(deadline=None)
@given(pages())
def test_int8_is_within_half_a_step_of_each_channel_or_token(values: PageValues) -> None:
    back = decode(encode(values, "int8"), SMALL, "int8")
    assert_within(back.hidden, values.hidden, symmetric_bound(values.hidden))
    for name in ("understanding", "fusion"):
        got, wanted = getattr(back, name), getattr(values, name)
        assert_within(keys(got), keys(wanted), symmetric_bound(keys(wanted)))
        assert_within(rows(got), rows(wanted), symmetric_bound(rows(wanted)))


@settings(deadline=None)
@given(pages())
def test_int4_is_within_half_a_step_and_its_hidden_states_are_those_of_int8(values: PageValues) -> None:
    back = decode(encode(values, "int4"), SMALL, "int4")
    assert np.array_equal(back.hidden, decode(encode(values, "int8"), SMALL, "int8").hidden)
    for name in ("understanding", "fusion"):
        got, wanted = getattr(back, name), getattr(values, name)
        assert_within(keys(got), keys(wanted), asymmetric_bound(keys(wanted)))
        assert_within(rows(got), rows(wanted), asymmetric_bound(rows(wanted)))


@given(pages(st.floats(-6e4, 6e4, width=32)))
def test_a_summary_is_the_mean_sixteen_times(values: PageValues) -> None:
    back = decode(encode(values, "summary"), SMALL, "summary")
    for got, wanted, axis in (
        (back.hidden, values.hidden, 0),
        (keys(back.understanding), keys(values.understanding), -1),
        (rows(back.fusion), rows(values.fusion), -2),
    ):
        mean = np.clip(wanted.mean(axis, keepdims=True, dtype=np.float64), -65504, 65504)
        assert got.shape == wanted.shape
        assert (got == got.take([0], axis)).all()
        assert (abs(got - mean) <= abs(mean) * 2.0**-10 + 2.0**-24).all()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_an_outlier_costs_only_its_own_channel_of_keys_and_its_own_token_of_values(form: str) -> None:
    values = one(random_pages(NANO, 1), 0)
    quiet = decode(encode(values, form), NANO, form)
    keys(values.understanding)[0, 0, 7, 3] = 1e4
    rows(values.understanding)[0, 0, 5, 9] = 1e4
    values.hidden[2, 4] = 1e4
    loud = decode(encode(values, form), NANO, form)
    assert keys(loud.understanding)[0, 0, 7, 3] == pytest.approx(1e4, rel=1e-3)
    assert rows(loud.understanding)[0, 0, 5, 9] == pytest.approx(1e4, rel=1e-3)
    changed = [
        np.argwhere(get(quiet) != get(loud))[:, :last]
        for get, last in (
            (lambda page: keys(page.understanding), 3),
            (lambda page: rows(page.understanding), 3),
            (lambda page: page.hidden, 1),
        )
    ]
    assert [{tuple(place) for place in places.tolist()} for places in changed] == [{(0, 0, 7)}, {(0, 0, 5)}, {(2,)}]


@pytest.mark.parametrize("number", [0.0, DENORMAL, 0.25, 1e4, -65504.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_constant_page_stays_what_it_is(form: str, number: float) -> None:
    values = PageValues(
        *(np.full(shape, number, np.float32) for shape in (NANO.hidden, NANO.understanding, NANO.fusion))
    )
    back = decode(encode(values, form), NANO, form)
    for name in names:
        assert np.allclose(getattr(back, name), number, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_size_is_known_before_and_many_pages_are_encoded_as_one_by_one(
    shapes: PageShapes, form: str, dtype: type
) -> None:
    values = random_pages(shapes, 5, dtype)
    data = encode_many(values, form)
    assert {len(page) for page in data} == {encoded_bytes(shapes, form, dtype)}
    assert data == [encode(one(values, index), form) for index in range(5)]
    together = decode_many(data, shapes, form)
    for index in range(5):
        apart = decode(memoryview(data[index]), shapes, form)
        for name in names:
            assert getattr(apart, name).shape == getattr(shapes, name)
            assert np.array_equal(getattr(apart, name), getattr(together, name)[index])


def test_the_nano_base_needs_this_much_for_a_page() -> None:
    assert [encoded_bytes(NANO, form) for form in FORMS] == [40_960, 21_792, 15_392, 2_560]


@pytest.mark.parametrize("form", ["exact", "int8", "int4"])
def test_a_page_can_be_summarised_from_any_form(form: str) -> None:
    values = one(random_pages(NANO, 1), 0)
    small = transcode(encode(values, form), NANO, form, "summary")
    direct = decode(encode(values, "summary"), NANO, "summary")
    assert len(small) == encoded_bytes(NANO, "summary")
    for name in names:
        assert np.allclose(getattr(decode(small, NANO, "summary"), name), getattr(direct, name), atol=0.08)


def test_what_is_decoded_may_be_written_to_and_is_not_the_bytes() -> None:
    data = encode(one(random_pages(SMALL, 1), 0), "exact")
    kept = bytes(data)
    for form in FORMS:
        back = decode(transcode(data, SMALL, "exact", form), SMALL, form)
        for name in names:
            getattr(back, name)[...] = 7
    assert data == kept


def test_bytes_of_another_form_are_our_own_mistake() -> None:
    data = encode(one(random_pages(SMALL, 1), 0), "int8")
    with pytest.raises(AssertionError, match="these are no pages of form int4"):
        decode(data, SMALL, "int4")
