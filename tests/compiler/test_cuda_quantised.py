"""CUDA kernels of quantised layers, emulated on the CPU, against `graph.quantised`: the same bits in any company."""

import shutil

import numpy as np
import pytest
import torch
from modularbase_compiler.kernels.cuda import CudaKernels
from torch.nn import functional

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import arrange
from modularbase_core.graph.ops import activate
from modularbase_core.graph.quantised import embed_groups, linear_groups, quantise_rows
from tests.compiler.emulated_int8 import prelude
from tests.compiler.emulation import Emulated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

KERNELS = CudaKernels("float32")  # float16 differs in the types of its loads and stores alone
HALF = CudaKernels("float16")
FEW, MANY = 0, 1
BLOCK = (32, 8)
# ten groups: slices of two of which the last are empty, two whole stages and half of one; N ends amid a block
N, K = 70, 320


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantised(x):
    values, scales = quantise_rows(torch.from_numpy(x))
    return values.flatten(1).numpy(), scales.numpy()


def relative(got, expected):
    """Return the largest relative L2 error of a row."""
    return (np.linalg.norm(got - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-30)).max()


class Linear:
    """A product of N columns by both kernels."""

    def __init__(self, folder, bits, *, kernels=KERNELS, dtype=np.float32, **added):
        self.bits, self._dtype = bits, dtype
        kernel = kernels.linear_groups(N, K, bits, **{"bias": False, "residual": False, **added})
        self._kernel = Emulated(kernel, folder, prelude(32))

    def __call__(self, part, x, w, b=None, r=None):
        y = np.full((len(x), N), np.nan, self._dtype)
        grid = (-(-N // 32), -(-len(x) // 32)) if part == FEW else (1, -(-len(x) // 64))
        q, scale = quantised(x)
        values = {"q": q, "scale": scale, "w": arrange(w, f"t32q{self.bits}"), "b": b, "r": r, "y": y, "rows": len(x)}
        self._kernel(grid, BLOCK, part, **values)
        return y

    def definition(self, x, w, b=None):
        matrix = (torch.from_numpy(np.ascontiguousarray(one)) for one in quantise_groups(w, self.bits))
        return linear_groups(
            torch.from_numpy(x), *matrix, None if b is None else torch.from_numpy(b), self.bits
        ).numpy()


@pytest.fixture(scope="module", params=[8, 4])
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def linear(bits, tmp_path_factory):
    return Linear(tmp_path_factory.mktemp("linear"), bits)


@pytest.mark.parametrize("rows", [1, 9, 31, 40])
def test_a_product_is_its_definition_by_either_kernel_with_the_same_bits(linear, rows):
    x, w = random(rows, K, seed=rows), random(N, K, seed=1)
    few, many = linear(FEW, x, w), linear(MANY, x, w)
    assert relative(few, linear.definition(x, w)) < 1e-6
    assert np.array_equal(few, many)


def test_bias_and_residual_are_added_to_it(bits, tmp_path):
    linear = Linear(tmp_path, bits, bias=True, residual=True)
    x, w, b, r = random(5, K), random(N, K, seed=1), random(N, seed=2), random(5, N, seed=3)
    few = linear(FEW, x, w, b, r)
    assert relative(few, linear.definition(x, w, b) + r) < 1e-6
    assert np.array_equal(few, linear(MANY, x, w, b, r))


def test_in_float16_only_what_is_read_and_written_is_rounded(tmp_path, tmp_path_factory):
    x, w, b, r = random(5, K), random(N, K, seed=1), random(N, seed=2), random(5, N, seed=3)
    b, r = b.astype(np.float16), r.astype(np.float16)
    narrow = Linear(tmp_path, 8, kernels=HALF, dtype=np.float16, bias=True, residual=True)(FEW, x, w, b, r)
    wide = Linear(tmp_path_factory.mktemp("wide"), 8, bias=True, residual=True)(
        FEW, x, w, b.astype(np.float32), r.astype(np.float32)
    )
    assert np.array_equal(narrow, wide.astype(np.float16))


def test_a_row_gets_the_same_bits_alone_in_a_batch_and_in_prefill(linear):
    x, w = random(71, K), random(N, K, seed=1)
    together = linear(MANY, x, w)
    for start, end in ((0, 1), (33, 34), (70, 71), (5, 12), (40, 71)):
        assert np.array_equal(linear(FEW, x[start:end], w), together[start:end])


def test_extremes_are_bounded_and_never_nan(linear):
    rng = np.random.default_rng(0)
    drawn = np.array([0.0, 1e-42, -1e-38, 1.0, -1.0, 1e4, -1e4, 3e-5], np.float32)
    x, w = rng.choice(drawn, (9, K)), rng.choice(drawn, (N, K))
    x[0], w[0], x[1], w[1] = 0, 0, 1e4, -1e4
    for part in (FEW, MANY):
        got = linear(part, x, w)
        assert np.isfinite(got).all()
        assert not got[0].any()
        assert relative(got, linear.definition(x, w)) < 1e-4


def test_the_greatest_sum_of_a_group_is_exact(linear):
    # 32 products of the largest integers, in float32 scales that are powers of two: any wrong bit would show
    x = np.full((1, K), 127.0, np.float32)
    w = np.full((N, K), -8.0 if linear.bits == 4 else -127.0, np.float32)
    assert np.array_equal(linear(FEW, x, w), linear.definition(x, w))


def run_quantise(folder, x, *weights, width=None, kernels=KERNELS, **choices):
    width = width or x.shape[1]
    q, scale = np.zeros((len(x), width), np.int8), np.zeros((len(x), width // 32), np.float32)
    kernel = Emulated(kernels.quantise(width, 8, **choices), folder, prelude(32))
    blocks = 1 if weights else -(-width // 256)
    kernel((len(x), blocks), BLOCK, x=x, q=q, scale=scale, rows=len(x), **dict(zip("w", weights, strict=False)))
    return q, scale


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e4])
def test_rows_are_quantised_as_defined(tmp_path, size):
    x = random(3, 288) * np.float32(size)
    for got, expected in zip(run_quantise(tmp_path, x), quantised(x), strict=True):
        assert np.array_equal(got, expected)


def test_rows_of_float16_are_quantised_as_their_values_are(tmp_path):
    x = random(3, 288).astype(np.float16)
    for got, expected in zip(run_quantise(tmp_path, x, kernels=HALF), quantised(x.astype(np.float32)), strict=True):
        assert np.array_equal(got, expected)


def test_a_norm_is_taken_on_the_way(tmp_path):
    x, w = random(3, 288), random(288, seed=1)
    values, scales = run_quantise(tmp_path, x, w, epsilon=1e-6)
    expected = quantised(functional.rms_norm(torch.from_numpy(x), (288,), torch.from_numpy(w), 1e-6).numpy())
    # the last bit of a norm may differ, and with it a value that lies between two integers
    assert np.abs(values - expected[0]).max() <= 1
    np.testing.assert_allclose(scales, expected[1], rtol=1e-5)


@pytest.mark.parametrize("form", ["swiglu", "geglu", "gelu"])
def test_an_activation_is_applied_on_the_way(tmp_path, form):
    x = random(3, 64 if form == "gelu" else 128)
    values, scales = run_quantise(tmp_path, x, form=form, width=64)
    expected = quantised(activate(torch.from_numpy(x), form).numpy())
    assert np.abs(values - expected[0]).max() <= 1
    np.testing.assert_allclose(scales, expected[1], rtol=1e-5)


def test_rows_of_a_packed_matrix_are_looked_up(tmp_path, bits):
    w, tokens = random(150, 288), np.array([0, 31, 32, 149, 77, 16, 15], np.int32)
    y = np.zeros((len(tokens), 288), np.float32)
    kernel = Emulated(KERNELS.embed_groups(150, 288, bits), tmp_path, prelude(32))
    kernel((len(tokens), 2), BLOCK, tokens=tokens, w=arrange(w, f"t32q{bits}"), y=y, rows=len(tokens))
    whole, scale = (torch.from_numpy(np.ascontiguousarray(one)) for one in quantise_groups(w, bits))
    assert np.array_equal(y, embed_groups(torch.from_numpy(tokens), whole, scale, bits).numpy())
