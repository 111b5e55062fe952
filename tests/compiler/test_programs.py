"""Whole compiled programs against the definition: ragged, chunked, decoded, and bit for bit in any batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.ragged import calls, in_chunks, layout

POOL, LISTED = 64, 5
few = settings(max_examples=10, deadline=None)


def values_for(program, call, seed=0):
    """Draw the inputs of a program for a ragged call."""
    rng = np.random.default_rng(seed)
    rows = len(call["slots"])
    given_values = {
        **call,
        "tokens": rng.integers(0, 150, rows).astype(np.int32),
        "rows": rng.integers(0, rows, 3).astype(np.int32),
    }
    sizes = {"T": rows, "P": POOL, "R": 3}
    return {
        item.name: given_values[item.name]
        if item.name in given_values
        else rng.standard_normal([sizes.get(size, size) for size in item.shape]).astype(np.float32)
        for item in program.inputs
    }


def assert_close(got, expected, bound=1e-5):
    for one, other in zip(got, expected, strict=True):
        rows = np.linalg.norm((one - other).reshape(len(one), -1), axis=1)
        scale = np.linalg.norm(other.reshape(len(other), -1), axis=1)
        assert (rows <= bound * scale + 1e-12).all()


@pytest.mark.parametrize(
    "name",
    [
        *("understand", "recall_hidden", "mix", "fuse", "route", "route_lexicon"),
        *("run", "run_mixture", "run_gelu", "delta_gelu"),
    ],
)
@few
@given(call=calls(listed=LISTED), seed=st.integers(0, 99))
def test_a_compiled_program_is_its_definition_on_ragged_calls(compiled, name, call, seed):
    program = compiled[name]
    values = values_for(program, call, seed)
    assert_close(program(**values), program.eager(**values))


@few
@given(rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_mix_and_compare_give_each_row_the_bits_that_it_gets_alone(compiled, rows, seed):
    left, right = np.random.default_rng(seed).standard_normal((2, rows, 64)).astype(np.float32)
    weight = np.random.default_rng(seed).random(rows, np.float32)
    mixed = compiled["mix"](total=left, part=right, weight=weight)[0]
    products = compiled["compare"](left=left, right=right)[0]
    assert_close([mixed], compiled["mix"].eager(total=left, part=right, weight=weight))
    # a sum of products may be near zero, so its error is held against their size
    expected = compiled["compare"].eager(left=left, right=right)[0]
    assert (np.abs(products - expected) <= 1e-6 * np.abs(left * right).mean(1)).all()
    for row in range(rows):
        one = slice(row, row + 1)
        alone = compiled["mix"](total=left[one], part=right[one], weight=weight[one])[0]
        assert np.array_equal(alone[0], mixed[row])
        assert compiled["compare"](left=left[one], right=right[one])[0][0] == products[row]


@few
@given(rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_head_delta_gives_each_row_the_bits_that_it_gets_alone(compiled, rows, seed):
    rng = np.random.default_rng(seed)
    output, logits = rng.standard_normal((rows, 64)).astype(np.float32), rng.standard_normal((rows, 150), np.float32)
    chosen, weight = rng.permutation(rows).astype(np.int32), rng.random(rows, np.float32)
    together = compiled["delta_gelu"](output=output, rows=chosen, logits=logits, weight=weight)[0]
    for row in range(0, rows, 5):
        one, own = slice(row, row + 1), output[chosen[row] : chosen[row] + 1]
        alone = compiled["delta_gelu"](output=own, rows=np.zeros(1, np.int32), logits=logits[one], weight=weight[one])
        assert np.array_equal(alone[0][0], together[row])


@few
@given(total=st.integers(2, 75), cuts=st.lists(st.integers(1, 74), max_size=3), seed=st.integers(0, 9))
def test_chunked_equals_whole_equals_decode(compiled, total, cuts, seed):
    program = compiled["understand"]
    whole_call = layout([total], [0], LISTED, seed=seed)
    whole = values_for(program, whole_call, seed)
    expected = program(**whole)

    # the same kernels and the same order of every sum: not only close, but equal
    for edges in ([0, *sorted({cut for cut in cuts if cut < total}), total], list(range(total + 1))):
        for one, other in zip(in_chunks(program, whole, edges), expected, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["understand", "fuse", "run", "run_mixture", "run_gelu"])
@few
@given(call=calls(listed=LISTED), seed=st.integers(0, 9))
def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(compiled, name, call, seed):
    program = compiled[name]
    values = values_for(program, call, seed)
    # the last row of each sequence, as in prefill; of other programs every row comes back
    values["rows"] = call["starts"] + call["lengths"] - 1
    together = program(**values)[0]
    for b, (start, length) in enumerate(zip(call["starts"], call["lengths"], strict=True)):
        rows = slice(start, start + length)
        alone = dict(values)
        for key in ("tokens", "mixed", "hidden", "slots"):
            if key in alone:
                alone[key] = values[key][rows]
        alone["rows"] = np.array([length - 1], np.int32)
        alone["starts"] = np.zeros(1, np.int32)
        alone |= {key: values[key][b : b + 1] for key in ("lengths", "context", "visible")}
        assert np.array_equal(program(**alone)[0], together[slice(b, b + 1) if name == "fuse" else rows])
