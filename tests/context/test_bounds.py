"""Bounds of keys against the keys themselves, and a search against its plain definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modularbase_core.context.bounds import GROUP_PAGES, GROUPS, BoundsIndex, _widened
from modularbase_core.errors import SessionError

LAYERS, KV_HEADS, HEAD_SIZE, HEADS = 2, 2, 4, 4
FEW = st.sets(st.integers(20, 20 + GROUPS * GROUP_PAGES // 2), min_size=1, max_size=40)


def made() -> BoundsIndex:
    return BoundsIndex(LAYERS, KV_HEADS, HEAD_SIZE)


def random_keys(random, count):
    return random.standard_normal((count, LAYERS, KV_HEADS, HEAD_SIZE, 16), dtype=np.float32)


def random_queries(random, rows=3, strength=1.0):
    return (strength * random.standard_normal((rows, LAYERS, HEADS, HEAD_SIZE))).astype(np.float32)


def filled(keys, numbers=None):
    index = made()
    index.add_many(range(len(keys)) if numbers is None else numbers, index.row(keys))
    return index


def read(rows):
    """[N, L, K, D] each: the largest and the smallest of each channel."""
    row = np.frombuffer(b"".join(rows), "<f2").astype(np.float64).reshape(-1, LAYERS, KV_HEADS, 2 * HEAD_SIZE)
    return row[..., :HEAD_SIZE], -row[..., HEAD_SIZE:]


def bounds_of(rows, queries):
    """[R, L, H, N]: max(q * smallest, q * largest) over channels."""
    largest, smallest = (np.repeat(bound, HEADS // KV_HEADS, axis=2) for bound in read(rows))
    queries = queries.astype(np.float64)[:, :, :, None]  # [R, L, H, 1, D] against [L, H, N, D]
    channels = (queries * bound.transpose(1, 2, 0, 3) for bound in (largest, smallest))
    return np.maximum(*channels).sum(axis=-1)


def defined(rows, queries):
    """The attention that each page's bounds would receive: [N]."""
    logits = bounds_of(rows, queries) * HEAD_SIZE**-0.5
    attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (attention / attention.sum(axis=-1, keepdims=True)).sum(axis=(0, 1, 2))


def assert_best(found, numbers, rows, queries, count):
    """`found` is in the order of the definition, but for equals within float32."""
    score = dict(zip(numbers, defined(rows, queries), strict=True))
    assert len(found) == len(set(found.tolist())) == min(count, len(numbers))
    assert [score[number] for number in found] == pytest.approx(sorted(score.values())[::-1][:count], rel=1e-4)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (2, LAYERS, KV_HEADS, HEAD_SIZE, 16), elements=st.floats(-60000, 60000, width=32)),
    st.integers(0, 2**32 - 1),
)
def test_a_bound_is_never_below_a_product_it_bounds(keys, seed) -> None:
    index = made()
    queries = random_queries(np.random.default_rng(seed), 2)
    rows = index.row(keys)
    heads = np.repeat(keys.astype(np.float64), HEADS // KV_HEADS, axis=2)
    products = np.einsum("rlhd,nlhdt->rlhnt", queries.astype(np.float64), heads)
    assert (bounds_of(rows, queries)[..., None] >= products - 1e-6).all()
    largest, smallest = read(rows)
    assert np.allclose(largest, keys.max(axis=-1), rtol=1e-3, atol=1e-7)
    assert np.allclose(smallest, keys.min(axis=-1), rtol=1e-3, atol=1e-7)


def test_every_bound_is_the_least_float16_that_is_not_below_the_largest_key() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)].astype(np.float32)
    beyond = np.nextafter(numbers, np.float32(np.inf)).clip(-65504, 65504)  # a float32 that float16 rounds down
    size = LAYERS * KV_HEADS * HEAD_SIZE * 16
    keys = np.concatenate([numbers, beyond]).repeat(16)  # each alone in its channel
    keys = keys[: len(keys) // size * size].reshape(-1, LAYERS, KV_HEADS, HEAD_SIZE, 16)
    largest, smallest = read(made().row(keys))
    for bound, wanted in ((largest, keys[..., 0]), (-smallest, -keys[..., 0])):
        rounded = wanted.astype(np.float16)
        with np.errstate(over="ignore"):  # of the largest, which is not taken
            above = np.nextafter(rounded, np.float16(np.inf))
        expected = np.where(rounded < wanted, above, rounded)
        assert np.array_equal(bound, expected.astype(np.float64))


def test_every_finite_float16_is_widened_exactly() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    assert np.array_equal(_widened(numbers).view(np.uint32), numbers.astype(np.float32).view(np.uint32))


@settings(deadline=None)
@given(FEW, st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 70), st.sampled_from([0.1, 1, 30]))
def test_a_search_of_few_pages_is_its_definition(numbers, seed, count, rows, strength) -> None:
    random, numbers = np.random.default_rng(seed), sorted(numbers)
    keys, queries = random_keys(random, len(numbers)), random_queries(random, rows, strength)
    found = filled(keys, numbers).search(queries, before=10_000, count=count)
    assert found.dtype == np.int64
    assert_best(found, numbers, made().row(keys), queries, count)


@settings(deadline=None)
@given(FEW, st.integers(0, 2**32 - 1), st.integers(0, 500), st.sets(st.integers(0, 500)), st.sets(st.integers(0, 500)))
def test_what_is_removed_too_late_or_excluded_is_as_if_it_were_not_held(
    numbers, seed, before, without, removed
) -> None:
    random, numbers = np.random.default_rng(seed), sorted(numbers)
    keys, queries = random_keys(random, len(numbers)), random_queries(random)
    index = filled(keys, numbers)
    for number in removed.intersection(numbers):
        index.remove(number)
    found = index.search(queries, before=before, count=16, without=without)
    left = [i for i, number in enumerate(numbers) if number < before and number not in without | removed]
    assert [number for number in range(600) if number in index] == sorted(set(numbers) - removed)
    assert len(index) == len(set(numbers) - removed)
    if left:
        assert_best(found, [numbers[i] for i in left], made().row(keys[left]), queries, 16)
        alone = filled(keys[left], [numbers[i] for i in left])
        assert found.tolist() == alone.search(queries, before=10_000, count=16).tolist()
    else:
        assert found.size == 0


@pytest.fixture(scope="module")
def long():
    """Keys of 5,000 pages and queries for what page 3210 says at one place of one head."""
    random = np.random.default_rng(7)
    keys, queries = random_keys(random, 5000), random_queries(random, 8)
    keys[3210, 1, 0, :, 5] = 12 * np.sign(queries[0, 1, 0])
    queries[:, 1, :2] = queries[0, 1, 0]
    return keys, queries


def test_the_page_that_was_asked_for_is_found_among_thousands(long) -> None:
    keys, queries = long
    index = filled(keys)
    found = index.search(queries, before=5000, count=16)
    assert found[0] == 3210
    assert len(found) == 16
    assert 3210 not in index.search(queries, before=3210, count=16)
    assert 3210 not in index.search(queries, before=5000, count=16, without={3210})
    index.remove(3210)
    assert 3210 not in index.search(queries, before=5000, count=16)


def test_a_long_search_does_not_see_what_it_may_not_return(long) -> None:
    keys, queries = long
    whole, part = filled(keys), filled(keys[:3000])
    expected = part.search(queries, before=3000, count=16).tolist()
    assert whole.search(queries, before=3000, count=16).tolist() == expected
    for number in range(3000, 3040):
        part.add(number, part.row(keys[number][None])[0])
    assert part.search(queries, before=3000, count=16).tolist() == expected
    assert whole.search(queries, before=5000, count=16, without=range(3000, 5000)).tolist() == expected


def test_neither_order_nor_the_past_changes_a_bit(long) -> None:
    keys, queries = long
    at_once, in_turn = filled(keys[:1500], range(100, 1600)), made()
    rows = in_turn.row(keys[:1500])
    for number in reversed(range(100, 1600)):
        in_turn.add(number, rows[number - 100])
    in_turn.add_many(range(40, 60), rows[:20])
    in_turn.search(queries[:2], before=900, count=4)
    for number in (*range(40, 60), 777):
        in_turn.remove(number)
    in_turn.add(777, rows[677])
    for before in (200, 900, 1600):
        found = at_once.search(queries, before=before, count=300)
        assert found.tolist() == in_turn.search(queries, before=before, count=300).tolist()
        assert found.tolist() == at_once.search(queries, before=before, count=300).tolist()


def test_of_equal_pages_the_first_come_first() -> None:
    random = np.random.default_rng(1)
    keys = np.repeat(random_keys(random, 1), 1003, axis=0)
    assert filled(keys).search(random_queries(random), before=1003, count=5).tolist() == [0, 1, 2, 3, 4]
    keys[::2] = random_keys(random, 1)
    found = filled(keys[:71]).search(random_queries(random), before=71, count=71).tolist()
    assert found in ([*range(0, 71, 2), *range(1, 71, 2)], [*range(1, 71, 2), *range(0, 71, 2)])


def test_nothing_comes_from_nothing() -> None:
    random = np.random.default_rng(2)
    empty, held = made(), filled(random_keys(random, 3), [5, 6, 9])
    empty.add_many([], [])
    queries = random_queries(random)
    assert empty.search(queries, before=10, count=4).size == 0
    assert held.search(queries[:0], before=10, count=4).size == 0
    assert held.search(queries, before=5, count=4).size == held.search(queries, before=10, count=0).size == 0
    for number in (5, 6, 9):
        held.remove(number)
    assert held.search(queries, before=10, count=4).size == len(held) == 0
    held.add(2, held.row(random_keys(random, 1))[0])
    assert held.search(queries, before=10, count=4).tolist() == [2]


def test_queries_and_keys_beyond_float16_give_no_nonsense() -> None:
    random = np.random.default_rng(3)
    keys = random_keys(random, 20) * 1e5
    found = filled(keys).search(random_queries(random) * 1e5, before=20, count=20)
    assert sorted(found.tolist()) == list(range(20))


def test_a_token_takes_the_bytes_told() -> None:
    index = BoundsIndex(2, 2, 64)
    index.add_many(range(4096), [bytes(index.row_bytes)] * 4096)
    taken = sum(held.nbytes for held in vars(index).values() if isinstance(held, np.ndarray))
    assert index.bytes_per_token == 64 + 8 + 1 / 16
    assert taken / (4096 * 16) == pytest.approx(index.bytes_per_token, rel=0.02)


def test_a_conversation_that_forgets_its_beginning_does_not_grow() -> None:
    random = np.random.default_rng(4)
    rows, queries = made().row(random_keys(random, 1000)), random_queries(random)
    index = made()
    for number, row in enumerate(rows):
        index.add(number, row)
        if number >= 30:
            index.remove(number - 30)
    assert len(index) == 30
    assert len(index._held) <= 64
    assert_best(index.search(queries, before=1000, count=9), range(970, 1000), rows[970:], queries, 9)


def test_a_row_of_another_base_is_refused() -> None:
    with pytest.raises(SessionError, match=r"page 7 take 16 bytes but this base's take 64; .* begin a new"):
        made().add(7, bytes(16))


def test_our_own_mistakes_are_caught() -> None:
    random = np.random.default_rng(5)
    index = filled(random_keys(random, 1), [5])
    with pytest.raises(AssertionError, match="a page is added twice"):
        index.add(5, index.row(random_keys(random, 1))[0])
    with pytest.raises(AssertionError, match="a page is added twice"):
        index.add_many([6, 6], index.row(random_keys(random, 2)))
    for number in (4, 6, 50):
        with pytest.raises(AssertionError, match=f"page {number} is not held"):
            index.remove(number)
    with pytest.raises(AssertionError, match=r"queries of \(3, 2, 3, 4\)"):
        index.search(random_queries(random)[:, :, :3], before=9, count=1)
    with pytest.raises(AssertionError, match=r"keys of \(1, 2, 2, 4, 15\)"):
        index.row(random_keys(random, 1)[..., :15])
