"""Each CPU kernel against the eager reference of `graph`, on drawn row counts and ragged calls."""

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modularbase_core.device.target import cpu_target
from modularbase_core.graph import ops
from modularbase_core.sdk.architecture import ACTIVATIONS
from tests.compiler.compiled import compiling
from tests.compiler.ragged import calls, layout

LAYERS, HEADS, KV_HEADS, SIZE = 2, 4, 2, 32
QKV = (HEADS + 2 * KV_HEADS) * SIZE
MINE = cpu_target()
LEVELS = [level for level in ("x86-64", "x86-64-v3", "x86-64-v4") if level <= MINE.level] or [MINE.level]
few = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module", params=LEVELS)
def make(request):
    return compiling(request.param)


def tensor(values):
    return tvm.runtime.tensor(np.ascontiguousarray(values))


def packed(weight):
    blocks = -(-weight.shape[0] // 32)
    padded = np.zeros((blocks * 32, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    return padded.reshape(blocks, 32, -1).transpose(0, 2, 1)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@few
@given(
    rows=st.integers(1, 110),
    shape=st.sampled_from([(32, 8), (64, 40), (128, 33), (50, 17), (1, 24), (192, 16)]),
    bias=st.booleans(),
    residual=st.booleans(),
)
def test_linear_is_that_of_torch_for_any_rows_and_edges(make, rows, shape, bias, residual):
    n, k = shape
    x, w, b, r = random(rows, k), random(n, k, seed=1), random(n, seed=2), random(rows, n, seed=3)
    out = tensor(np.full((rows, n), np.nan, np.float32))
    extra = ([tensor(b)] if bias else []) + ([tensor(r)] if residual else [])
    make("linear", n, k, bias=bias, residual=residual, stored="float32")(tensor(x), tensor(packed(w)), *extra, out)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + (b if bias else 0) + (r if residual else 0)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)


@few
@given(rows=st.integers(1, 110), seed=st.integers(0, 9))
def test_linear_gives_a_row_the_same_bits_in_any_company(make, rows, seed):
    kernel = make("linear", 128, 40, bias=False, residual=False, stored="float32")
    x, w = random(rows, 40, seed=seed), tensor(packed(random(128, 40, seed=1)))
    together = tensor(np.zeros((rows, 128), np.float32))
    kernel(tensor(x), w, together)
    alone = tensor(np.zeros((1, 128), np.float32))
    for row in {0, rows // 2, rows - 1}:
        kernel(tensor(x[row : row + 1]), w, alone)
        assert np.array_equal(alone.numpy()[0], together.numpy()[row])


@few
@given(rows=st.integers(1, 40))
def test_rms_norm_is_that_of_torch(make, rows):
    x, w = random(rows, 48), random(48, seed=1)
    out = tensor(np.zeros_like(x))
    make("rms_norm", 48, 1e-6)(tensor(x), tensor(w), out)
    expected = functional.rms_norm(torch.from_numpy(x), [48], torch.from_numpy(w), 1e-6)
    np.testing.assert_allclose(out.numpy(), expected, rtol=2e-6, atol=1e-6)


@few
@given(rows=st.integers(1, 40), scale=st.sampled_from([0.1, 1.0, 40.0, 1e4]), form=st.sampled_from(ACTIVATIONS))
def test_activations_are_those_of_torch_also_far_from_zero(make, rows, scale, form):
    x = random(rows, 48 if form == "gelu" else 96) * np.float32(scale)
    out = tensor(np.zeros((rows, 48), np.float32))
    make("activation", 48, form)(tensor(x), out)
    np.testing.assert_allclose(
        out.numpy(), ops.activate(torch.from_numpy(x), form), rtol=2e-6, atol=2e-6 * max(scale, 1)
    )


@few
@given(call=calls())
def test_append_kv_writes_the_pages_of_the_reference(make, call):
    pages, qkv = random(64, LAYERS, 2, KV_HEADS, 16 * SIZE), random(len(call["slots"]), QKV, seed=1)
    expected = ops.append_kv(*map(torch.from_numpy, (pages, qkv, call["slots"])), 1, HEADS)
    written = tensor(pages)
    make("append_kv", LAYERS, HEADS, KV_HEADS, SIZE)(written, tensor(qkv), tensor(call["slots"]), 1)
    assert np.array_equal(written.numpy(), expected.numpy())


def test_append_hidden_writes_the_pages_of_the_reference(make):
    call = layout([3, 20], [15, 0], 5)
    pages, hidden = random(64, 16, 24), random(23, 24, seed=1)
    expected = ops.append_hidden(*map(torch.from_numpy, (pages, hidden, call["slots"])))
    written = tensor(pages)
    make("append_hidden", 24)(written, tensor(hidden), tensor(call["slots"]))
    assert np.array_equal(written.numpy(), expected.numpy())


@few
@given(rows=st.integers(1, 9), seed=st.integers(0, 9), form=st.sampled_from(ACTIVATIONS))
def test_moe_is_that_of_the_reference(make, rows, seed, form):
    gate_up = random(4, 24 if form == "gelu" else 48, 32, seed=2)
    values = (random(rows, 32), random(rows, 4, seed=seed), gate_up, random(4, 32, 24, seed=3))
    for chosen in (1, 2, 4):
        out = tensor(np.zeros((rows, 32), np.float32))
        make("moe", 4, chosen, 32, 24, form)(*map(tensor, values), out)
        expected = ops.moe(*map(torch.from_numpy, values), chosen, form).numpy()
        assert np.linalg.norm(out.numpy() - expected) <= 2e-6 * np.linalg.norm(expected)


def test_moe_takes_the_first_experts_of_equal_logits(make):
    values = [random(2, 32), np.zeros((2, 4), np.float32), random(4, 48, 32, seed=2), random(4, 32, 24, seed=3)]
    out = tensor(np.zeros((2, 32), np.float32))
    make("moe", 4, 2, 32, 24, "swiglu")(*map(tensor, values), out)
    values[1][:, 2:] = -1
    expected = ops.moe(*map(torch.from_numpy, values), 2, "swiglu").numpy()
    assert np.linalg.norm(out.numpy() - expected) <= 2e-6 * np.linalg.norm(expected)
