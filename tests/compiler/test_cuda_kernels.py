"""The CUDA kernels, emulated on the CPU, against the eager reference; and bit for bit in any batch."""

import shutil

import numpy as np
import pytest
import torch
from modularbase_compiler.kernels.cuda import CudaKernels
from modularbase_compiler.kernels.workspace import mixture_shapes
from torch.nn import functional

from modularbase_core.errors import ArtefactError
from modularbase_core.graph import ops
from modularbase_core.sdk.architecture import ACTIVATIONS
from tests.compiler.emulated_half import EmulatedHalf
from tests.compiler.emulation import Emulated, zeros
from tests.compiler.ragged import layout

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

KERNELS = CudaKernels("float32")  # where a kernel takes any dtype
LAYERS = 2


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def half(*shape, seed=0):
    return random(*shape, seed=seed).astype(np.float16)


@pytest.mark.parametrize(("n", "k"), [(70, 41), (33, 1096)])  # odd rows, and one that every warp shares
def test_linear_is_that_of_torch_on_edges_and_bit_for_bit_in_any_batch(tmp_path, n, k):
    kernel = EmulatedHalf(KERNELS.linear(n, k, bias=True, residual=True, stored="float16"), tmp_path)
    x, w, b, r = (half(*shape, seed=i) for i, shape in enumerate([(70, k), (n, k), (n,), (70, n)]))
    expected = (x.astype(np.float32) @ w.astype(np.float32).T + b + r).astype(np.float16)

    def linear(rows):
        y = np.full((len(rows), n), np.nan, np.float16)
        values = {"x": x[rows], "w": w, "b": b, "r": r[rows], "y": y, "rows": len(rows)}
        if len(rows) <= 32:
            kernel(0, (-(-n // 16),), 256, **values)
        else:
            kernel(1, (-(-n // 64), -(-len(rows) // 64)), 128, **values)
        return y

    few, many = linear(np.arange(32)), linear(np.arange(70))
    for out in (few, many):  # of other sums the last bit of float16 may differ
        np.testing.assert_allclose(out, expected[: len(out)], rtol=1e-3, atol=2e-4 * k**0.5)
    for rows in ([0], [31, 3], list(range(9, 20))):
        assert np.array_equal(linear(np.array(rows)), few[rows])


def test_rms_norm_is_that_of_torch(tmp_path):
    x, w, y = random(3, 200), random(200, seed=1), zeros(3, 200)
    Emulated(KERNELS.rms_norm(200, 1e-6), tmp_path)((3, 1), (128, 1), x=x, w=w, y=y, rows=3)
    np.testing.assert_allclose(y, functional.rms_norm(torch.from_numpy(x), [200], torch.from_numpy(w), 1e-6), rtol=1e-5)


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_activations_are_those_of_torch(tmp_path, form):
    x, y = random(3, 150 if form == "gelu" else 300), zeros(3, 150)
    Emulated(KERNELS.activation(150, form), tmp_path)((3, 1), (128, 1), x=x, y=y, rows=3)
    np.testing.assert_allclose(y, ops.activate(torch.from_numpy(x), form), rtol=1e-5, atol=1e-6)


def test_appending_writes_the_pages_of_the_reference(tmp_path):
    call = layout([3, 20], [15, 0], 5)
    pages, qkv = random(64, LAYERS, 2, 2, 16 * 32), random(23, 8 * 32, seed=1)
    expected = ops.append_kv(*map(torch.from_numpy, (pages, qkv, call["slots"])), 1, 4)
    kernel = Emulated(KERNELS.append_kv(LAYERS, 4, 2, 32), tmp_path)
    kernel((23, 1), (128, 1), pages=pages, x=qkv, slots=call["slots"], layer=1, rows=23, count=64)
    assert np.array_equal(pages, expected.numpy())
    hidden_pages, hidden = random(64, 16, 200), random(23, 200, seed=1)
    expected = ops.append_hidden(*map(torch.from_numpy, (hidden_pages, hidden, call["slots"])))
    kernel = Emulated(KERNELS.append_hidden(200), tmp_path)
    kernel((23, 1), (128, 1), pages=hidden_pages, x=hidden, slots=call["slots"], rows=23, count=64)
    assert np.array_equal(hidden_pages, expected.numpy())


@pytest.mark.parametrize("form", ["geglu", "gelu"])
def test_moe_is_that_of_the_reference_and_bit_for_bit_in_any_batch(tmp_path, form):
    experts, chosen, width, ffn = 5, 2, 150, 24
    kernel = EmulatedHalf(KERNELS.moe(experts, chosen, width, ffn, form), tmp_path)
    x, logits = half(70, width), random(70, experts, seed=1)
    gate_up, down = half(experts, ffn if form == "gelu" else 2 * ffn, width, seed=2), half(experts, width, ffn, seed=3)

    def moe(first, last):
        count = last - first
        y = np.full((count, width), np.nan, np.float16)
        shapes = mixture_shapes(count, experts, chosen, width, ffn)
        names = ("ids", "order", "first", "gates", "hidden", "made")
        values = {name: np.full(shape, -1, dtype) for name, (shape, dtype) in zip(names, shapes, strict=True)}
        values |= {"x": x[first:last], "logits": logits[first:last], "ups": gate_up, "downs": down, "y": y}
        tiles = count * chosen // 32 + min(count * chosen, experts)
        kernel(0, (1,), 256, rows=count, **values)
        kernel(1, (-(-ffn // (16 if form == "gelu" else 8)), tiles), 256, rows=count, **values)
        kernel(2, (-(-width // 16), tiles), 256, rows=count, **values)
        kernel(3, (count,), 128, rows=count, **values)
        return y

    whole = moe(0, 70)
    tensors = [torch.from_numpy(item.astype(np.float32)) for item in (x, logits, gate_up, down)]
    expected = ops.moe(*tensors, chosen, form).numpy()
    assert np.linalg.norm(whole - expected) <= 1e-3 * np.linalg.norm(expected)
    assert np.array_equal(moe(0, 1), whole[:1])
    assert np.array_equal(moe(30, 37), whole[30:37])


def test_a_head_that_exceeds_shared_memory_is_refused():
    with pytest.raises(ArtefactError, match="lower head_size"):
        KERNELS.attend(1, 2, 2, 512, 1024)
