"""Attention's CUDA kernel, emulated on the CPU, against the eager reference; and bit for bit in any batch."""

import shutil

import numpy as np
import pytest
import torch
from modularbase_compiler.kernels.cuda import CudaKernels
from modularbase_compiler.kernels.workspace import FEW_ROWS, partial_shape

from modularbase_core.graph import ops
from modularbase_core.graph.rotary import rotary_table
from tests.compiler.emulated_half import EmulatedHalf
from tests.compiler.ragged import layout

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

LAYERS = 2
# query heads, kv heads, head size, positions: narrow loads of values and odd groups; wide loads and a long window
SHAPES = [(6, 2, 32, 640), (2, 1, 64, 16384)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def attend(request, tmp_path_factory):
    return Attend(*request.param, tmp_path_factory.mktemp("attend"))


class Attend:
    """One kernel and the random values that it is called with."""

    def __init__(self, heads, kv_heads, size, positions, folder):
        self.heads, self.kv_heads, self.size, self.positions = heads, kv_heads, size, positions
        self.kernel = EmulatedHalf(CudaKernels("float16").attend(LAYERS, heads, kv_heads, size, positions), folder)
        self.table = rotary_table(positions, size, 10000.0)
        self.pool = 3 * positions // 16 + 8
        random = np.random.default_rng(1)
        shape = (self.pool, LAYERS, 2, kv_heads, 16 * size)
        self.pages = random.standard_normal(shape, np.float32).astype(np.float16)
        self.qkv = random.standard_normal((80, (heads + 2 * kv_heads) * size), np.float32).astype(np.float16)

    def layout(self, lengths, contexts):
        return layout(lengths, contexts, self.positions // 16, self.pool)

    def __call__(self, qkv, call, *, pages=None, few=None):
        rows, batch, listed = len(qkv), len(call["starts"]), call["visible"].shape[1]
        out = np.full((rows, self.heads * self.size), np.nan, np.float16)
        partials = np.full(partial_shape(self.heads, self.size, self.positions), np.nan, np.float32)
        places = {name: call[name] for name in ("starts", "lengths", "context", "visible")}
        sizes = {"rows": rows, "count": self.pool, "batch": batch, "listed": listed, "layer": 1}
        pages = self.pages if pages is None else pages
        values = {"x": qkv, "pages": pages, "table": self.table, "out": out, "partials": partials, **places, **sizes}
        pairs = rows * self.heads // self.kv_heads
        if rows <= FEW_ROWS if few is None else few:
            self.kernel(0, (pairs // 16 + batch, -(-listed // 16), self.kv_heads), 128, **values)
            self.kernel(1, (rows, self.heads), self.size, **values)
        else:
            self.kernel(2, (pairs // 64 + batch, self.kv_heads), 128, **values)
        return out

    def reference(self, qkv, call):
        places = [torch.from_numpy(call[name]) for name in ("starts", "lengths", "context", "visible")]
        tensors = [torch.from_numpy(item) for item in (qkv, self.pages, self.table)]
        return ops.attend(*tensors, *places, 1, self.heads).float().numpy()


def distance(out, expected):
    return np.linalg.norm(out.astype(np.float32) - expected) / np.linalg.norm(expected)


def test_few_rows_of_a_ragged_call_give_what_the_reference_gives(attend):
    call, qkv = attend.layout([3, 1, 20], [attend.positions - 4, 0, 60]), attend.qkv[:24]
    out = attend(qkv, call)
    assert distance(out, attend.reference(qkv, call)) <= 1e-3


def test_many_rows_of_a_ragged_call_give_what_the_reference_gives_and_what_few_rows_give(attend):
    call, qkv = attend.layout([40, 1], [250, 300]), attend.qkv[:41]
    out = attend(qkv, call)
    assert distance(out, attend.reference(qkv, call)) <= 1e-3
    first = {**call, "lengths": np.int32([30, 1]), "starts": np.int32([0, 30])}
    rows = [*range(30), 40]
    few = attend(qkv[rows], first)
    # sums differ by float32's rounding, which seldom reaches the last bit of float16
    assert (few != out[rows]).mean() <= 0.01
    assert distance(few, out[rows].astype(np.float32)) <= 5e-5


def test_a_row_has_the_same_bits_in_every_batch_of_few_rows(attend):
    call, qkv = attend.layout([3, 1, 20], [290, 0, 60]), attend.qkv[:24]
    together = attend(qkv, call)
    for b, (first, length) in enumerate(zip(call["starts"], call["lengths"], strict=True)):
        for i in {0, length - 1}:
            alone = {
                "starts": np.int32([0]),
                "lengths": np.int32([1]),
                "context": call["context"][b : b + 1] + np.int32(i),
                "visible": np.ascontiguousarray(call["visible"][b : b + 1, : (call["context"][b] + i) // 16 + 1]),
            }
            assert np.array_equal(attend(qkv[first + i : first + i + 1], alone)[0], together[first + i])


@pytest.mark.parametrize("few", [True, False])
def test_nothing_past_the_last_visible_position_is_read(attend, few):
    call, qkv, seen = attend.layout([7], [262]), attend.qkv[:7], 269
    visible, last = call["visible"][0, : -(-seen // 16)], seen % 16
    poisoned = np.full_like(attend.pages, np.nan)
    poisoned[visible] = attend.pages[visible]
    keys, values = (poisoned[visible[-1], 1, side] for side in (0, 1))
    keys.reshape(attend.kv_heads, -1, 16)[:, :, last:] = np.nan
    values.reshape(attend.kv_heads, 16, -1)[:, last:] = np.nan
    expected = attend(qkv, call, few=few)
    call["visible"][0, -(-seen // 16) :] = 1 << 30
    assert np.isfinite(expected).all()
    assert np.array_equal(attend(qkv, call, pages=poisoned, few=few), expected)
