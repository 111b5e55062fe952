"""The CUDA kernels, emulated on the CPU, against the eager reference; and bit for bit in any batch."""

import shutil

import numpy as np
import pytest
import torch
from modularbase_compiler.kernels.cuda import CudaKernels
from torch.nn import functional

from modularbase_core.errors import ArtefactError
from modularbase_core.graph import ops
from modularbase_core.graph.rotary import rotary_table
from modularbase_core.sdk.architecture import ACTIVATIONS
from tests.compiler.emulation import Emulated, zeros
from tests.compiler.ragged import layout

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

KERNELS = CudaKernels("float32")  # float16 differs in the types of its loads and stores alone
POSITIONS, LAYERS = 96, 2


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 64, 32), (19, 70, 41)])
def test_linear_is_that_of_torch_on_edges(tmp_path, rows, n, k):
    x, w, b, r = random(rows, k), random(n, k, seed=1), random(n, seed=2), random(rows, n, seed=3)
    y = np.full((rows, n), np.nan, np.float32)
    kernel = Emulated(KERNELS.linear(n, k, bias=True, residual=True, stored="float16"), tmp_path)
    kernel((-(-n // 64), -(-rows // 16)), (16, 16), x=x, w=w, b=b, r=r, y=y, rows=rows)
    np.testing.assert_allclose(y, x @ w.T + b + r, rtol=1e-5, atol=1e-5)
    alone = zeros(1, n)
    kernel((-(-n // 64), 1), (16, 16), x=x[-1:].copy(), w=w, b=b, r=r[-1:].copy(), y=alone, rows=1)
    assert np.array_equal(alone[0], y[-1])


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


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 32), (3, 1, 64)])
def test_attend_is_that_of_the_reference_on_a_ragged_call(tmp_path, heads, kv_heads, size):
    # a window of two turns of a block's threads
    positions, spans = 160, ([3, 1, 5], [150, 0, 60])
    call = layout(*spans, 10)
    table = rotary_table(positions, size, 10000.0)
    qkv, pages = random(9, (heads + 2 * kv_heads) * size), random(64, LAYERS, 2, kv_heads, 16 * size, seed=1)
    kernel = Emulated(KERNELS.attend(LAYERS, heads, kv_heads, size, positions), tmp_path)

    def attend(qkv, call):
        out = np.full((len(qkv), heads * size), np.nan, np.float32)
        places = {name: call[name] for name in ("starts", "lengths", "context", "visible")}
        sizes = {"rows": len(qkv), "count": 64, "batch": len(call["starts"]), "listed": 10, "layer": 1}
        kernel((len(qkv), heads), (128, 1), x=qkv, pages=pages, table=table, out=out, **places, **sizes)
        return out

    out = attend(qkv, call)
    arguments = [torch.from_numpy(call[name]) for name in ("starts", "lengths", "context", "visible")]
    expected = ops.attend(*map(torch.from_numpy, (qkv, pages, table)), *arguments, 1, heads).numpy()
    assert np.linalg.norm(out - expected) <= 2e-6 * np.linalg.norm(expected)
    first = {name: call[name][:1].copy() for name in ("lengths", "context", "visible", "starts")}
    assert np.array_equal(attend(qkv[:3].copy(), first), out[:3])


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_moe_is_that_of_the_reference(tmp_path, form):
    x, logits, gate_up, down = (
        random(3, 150),
        random(3, 4, seed=1),
        random(4, 24 if form == "gelu" else 48, 150, seed=2),
        random(4, 150, 24, seed=3),
    )
    y = zeros(3, 150)
    kernel = Emulated(KERNELS.moe(4, 2, 150, 24, form), tmp_path)
    kernel((3, 1), (128, 1), x=x, logits=logits, gate_up=gate_up, down=down, y=y, rows=3)
    expected = ops.moe(*map(torch.from_numpy, (x, logits, gate_up, down)), 2, form).numpy()
    assert np.linalg.norm(y - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_window_that_exceeds_shared_memory_is_refused():
    with pytest.raises(ArtefactError, match="lower trained_tokens"):
        KERNELS.attend(1, 2, 2, 64, 16384)
