"""Kernels of quantised layers against `graph.quantised`, by every way of multiplying bytes that this machine has."""

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import arrange
from modularbase_core.device.target import cpu_target
from modularbase_core.graph.ops import activate
from modularbase_core.graph.quantised import embed_groups, linear_groups, quantise_rows
from tests.compiler.compiled import compiling

MINE = cpu_target()
VARIANTS = {"avx512-vnni": ("x86-64-v4", "avx512vnni"), "avx2": ("x86-64-v3", ""), "portable": ("x86-64-v2", "")}
LEVELS = ["generic", "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"]
RUNNABLE = [
    name
    for name, (level, feature) in VARIANTS.items()
    if level in LEVELS[: LEVELS.index(MINE.level) + 1] and (not feature or feature in MINE.features)
]
ROWS = st.integers(1, 67)
# N, K, bias, residual; each is a kernel to compile
SHAPES = st.sampled_from([(32, 32, False, False), (96, 64, True, False), (50, 96, True, True), (1, 32, False, True)])
few = settings(max_examples=12, deadline=None)


def compiling_for(variant):
    """Return what compiles a kernel, once, for one way of multiplying bytes."""
    level, feature = VARIANTS[variant]
    return compiling(level, (feature,) if feature else ())


@pytest.fixture(scope="module", params=RUNNABLE)
def make(request):
    return compiling_for(request.param)


def tensor(values):
    return tvm.runtime.tensor(np.ascontiguousarray(values))


def zeros(shape, dtype):
    return tensor(np.zeros(shape, dtype))


def run_quantise(make, x, bits, *weights, **choices):
    width = choices.pop("width", x.shape[1])
    out = [
        zeros((len(x), width), "int8"),
        zeros((len(x), width // 32), "float32"),
        zeros((len(x), width // 32), "int32"),
    ]
    make("quantise", width, bits, **choices)(tensor(x), *map(tensor, weights), *out)
    return out


def run_linear(make, x, w, bits, bias=None, residual=None):
    n, k = w.shape
    out = tensor(np.full((len(x), n), np.nan, np.float32))
    kernel = make("linear_groups", n, k, bits, bias=bias is not None, residual=residual is not None)
    extra = [tensor(one) for one in (bias, residual) if one is not None]
    kernel(*run_quantise(make, x, bits), tensor(arrange(w, f"n32q{bits}")), *extra, out)
    return out.numpy()


def definition(x, w, bits, bias=None):
    whole, scale = quantise_groups(w, bits)
    tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in (x, whole, scale)]
    return linear_groups(*tensors, None if bias is None else torch.from_numpy(bias), bits).numpy()


def relative(got, expected):
    """Return the largest relative L2 error of a row."""
    size = np.linalg.norm(expected, axis=1)
    return (np.linalg.norm(got - expected, axis=1) / np.maximum(size, 1e-30)).max()


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(rows=ROWS, shape=SHAPES, seed=st.integers(0, 99))
def test_a_quantised_product_is_its_definition(make, bits, rows, shape, seed):
    n, k, bias, residual = shape
    x, w = random(rows, k, seed=seed), random(n, k, seed=seed + 1)
    b, r = random(n, seed=2) if bias else None, random(rows, n, seed=3) if residual else None
    expected = definition(x, w, bits, b) + (0 if r is None else r)
    assert relative(run_linear(make, x, w, bits, b, r), expected) < 1e-4


@pytest.mark.parametrize(("bits", "bound"), [(8, 1.5e-2), (4, 1.5e-1)])
def test_a_quantised_product_is_near_that_of_floats(make, bits, bound):
    x, w = random(40, 256), random(96, 256, seed=1)
    whole, scale = quantise_groups(w, bits)
    rounded = (whole.reshape(96, -1, 32) * scale[..., None].astype(np.float32)).reshape(96, -1)
    got = run_linear(make, x, w, bits)
    assert relative(got, x @ rounded.T) < 1.5e-2  # what quantising the rows costs
    assert relative(got, x @ w.T) < bound


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(rows=ROWS, seed=st.integers(0, 9))
def test_a_row_gets_the_same_bits_in_any_company(make, bits, rows, seed):
    x, w = random(rows, 64, seed=seed), random(96, 64, seed=1)
    together = run_linear(make, x, w, bits)
    for row in {0, rows // 2, rows - 1}:
        assert np.array_equal(run_linear(make, x[row : row + 1], w, bits)[0], together[row])


@pytest.mark.parametrize("bits", [8, 4])
def test_every_way_with_fused_additions_gives_the_same_bits(bits):
    x, w = random(37, 96), random(70, 96, seed=1)
    results = [run_linear(compiling_for(one), x, w, bits) for one in RUNNABLE if one != "portable"]
    assert all(np.array_equal(one, results[0]) for one in results)


extreme = st.sampled_from([0.0, 1e-42, -1e-38, 1.0, -1.0, 1e4, -1e4, 3e-5])


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(rows=st.integers(1, 9), drawn=st.lists(extreme, min_size=8, max_size=8), seed=st.integers(0, 9))
def test_extremes_are_bounded_and_never_nan(make, bits, rows, drawn, seed):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array(drawn, np.float32), (rows, 64))
    w = rng.choice(np.array(drawn, np.float32), (40, 64))
    got = run_linear(make, x, w, bits)
    assert np.isfinite(got).all()
    # a product errs by half a step of either factor, in each of 64
    bound = 64 * np.abs(x).max(1)[:, None] * np.abs(w).max(1)[None] * (1 / 127 + (1 / 127 if bits == 8 else 1 / 7))
    assert (np.abs(got - x.astype(np.float64) @ w.T.astype(np.float64)) <= bound + 1e-6).all()


@few
@given(rows=ROWS, groups=st.integers(1, 5), bits=st.sampled_from([4, 8]), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_rows_are_quantised_as_defined(make, rows, groups, bits, size):
    x = random(rows, groups * 32) * np.float32(size)
    values, scales, zero = (one.numpy() for one in run_quantise(make, x, bits))
    whole, expected = quantise_rows(torch.from_numpy(x))
    assert np.array_equal(values, whole.flatten(1).numpy())
    assert np.array_equal(scales, expected.numpy())
    assert np.array_equal(zero, -(1 << (bits - 1)) * whole.int().sum(-1).numpy())


@pytest.mark.parametrize("rows", [1, 19])
def test_a_norm_is_taken_on_the_way(make, rows):
    x, w = random(rows, 96), random(96, seed=1)
    values, scales, _ = (one.numpy() for one in run_quantise(make, x, 8, w, epsilon=1e-6))
    normed = functional.rms_norm(torch.from_numpy(x), (96,), torch.from_numpy(w), 1e-6)
    # the last bit of a norm may differ, and with it a value that lies between two integers
    assert np.abs(values - quantise_rows(normed)[0].flatten(1).numpy()).max() <= 1
    np.testing.assert_allclose(scales, quantise_rows(normed)[1].numpy(), rtol=1e-5)


@pytest.mark.parametrize("form", ["swiglu", "geglu", "gelu"])
@pytest.mark.parametrize("rows", [1, 19])
def test_an_activation_is_applied_on_the_way(make, form, rows):
    x = random(rows, 64 if form == "gelu" else 128)
    values, scales, _ = (one.numpy() for one in run_quantise(make, x, 8, form=form, width=64))
    expected = quantise_rows(activate(torch.from_numpy(x), form))
    assert np.abs(values - expected[0].flatten(1).numpy()).max() <= 1
    np.testing.assert_allclose(scales, expected[1].numpy(), rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_a_packed_matrix_are_looked_up(make, bits):
    w, tokens = random(150, 96), np.array([0, 31, 32, 149, 77, 16, 15], np.int32)
    out = zeros((len(tokens), 96), "float32")
    make("embed_groups", 150, 96, bits)(tensor(tokens), tensor(arrange(w, f"n32q{bits}")), out)
    whole, scale = (torch.from_numpy(np.ascontiguousarray(one)) for one in quantise_groups(w, bits))
    assert np.array_equal(out.numpy(), embed_groups(torch.from_numpy(tokens), whole, scale, bits).numpy())
