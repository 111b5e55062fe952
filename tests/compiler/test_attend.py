"""The CPU's paged attention: against the eager reference of `graph`, and the same bits however its rows are cut."""

import itertools

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.target import host_target

from modularbase_core.device.target import Target, cpu_target
from modularbase_core.graph import ops
from modularbase_core.graph.rotary import rotary_table
from tests.compiler.ragged import calls, layout

LAYERS, PAGES, POSITIONS = 2, 160, 640  # three blocks of 256 keys
LISTED = POSITIONS // 16
MINE = cpu_target()
LEVELS = [level for level in ("x86-64", "x86-64-v3", "x86-64-v4") if level <= MINE.level] or [MINE.level]
# query heads, kv heads, head size: what we ship, Qwen2-0.5B, one head a group, odd vectors, more heads than a tile
SHAPES = [(4, 2, 64), (14, 2, 64), (2, 2, 128), (6, 2, 96), (20, 1, 32)]
some = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module", params=LEVELS)
def attend(request):
    """Compile kernels for one processor level as they are asked for, and call them."""
    target = Target(name="cpu", system=MINE.system, machine=MINE.machine, level=request.param)
    built = {}

    def call(values, call, shape):
        heads, kv_heads, size = shape
        if shape not in built:
            kernel = CpuKernels(request.param).attend(LAYERS, heads, kv_heads, size, POSITIONS)
            built[shape] = tvm.compile(kernel, host_target(target))
        out = tensor(np.full((len(values[0]), heads * size), np.nan, np.float32))
        places = [tensor(call[name]) for name in ("starts", "lengths", "context", "visible")]
        built[shape](*map(tensor, values), tensor(table(size)), *places, 1, out)
        return out.numpy()

    return call


def tensor(values):
    return tvm.runtime.tensor(np.ascontiguousarray(values))


def table(size):
    return rotary_table(POSITIONS, size, 10000.0)


def drawn(rows, shape, scale=1.0):
    """Make queries and pages."""
    heads, kv_heads, size = shape
    generator = np.random.default_rng(rows)
    qkv = generator.standard_normal((rows, (heads + 2 * kv_heads) * size)) * scale
    return qkv.astype(np.float32), generator.standard_normal((PAGES, LAYERS, 2, kv_heads, 16 * size), np.float32)


def reference(values, call, shape):
    places = [torch.from_numpy(call[name]) for name in ("starts", "lengths", "context", "visible")]
    tensors = [torch.from_numpy(item) for item in (*values, table(shape[2]))]
    return ops.attend(*tensors, *places, 1, shape[0]).numpy()


def distance(out, expected):
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)


@some
@given(call=calls(LISTED, pool=PAGES), shape=st.sampled_from(SHAPES))
def test_ragged_calls_give_what_the_reference_gives(attend, call, shape):
    values = drawn(len(call["slots"]), shape)
    assert distance(attend(values, call, shape), reference(values, call, shape)) <= 3e-6


@some
@given(
    total=st.integers(2, POSITIONS),
    cuts=st.lists(st.integers(1, POSITIONS - 1), max_size=4),
    shape=st.sampled_from(SHAPES),
)
def test_a_row_has_the_same_bits_in_every_chunk(attend, total, cuts, shape):
    values, whole = drawn(total, shape), layout([total], [0], LISTED, PAGES)
    together = attend(values, whole, shape)
    assert distance(together, reference(values, whole, shape)) <= 3e-6
    ends = sorted({0, total, *(cut for cut in cuts if cut < total)})
    single = {(i, i + 1) for i in (0, total // 2, total - 2, total - 1)}
    for first, last in {*itertools.pairwise(ends), *single}:
        part = {**whole, "lengths": np.int32([last - first]), "context": np.int32([first])}
        assert np.array_equal(attend((values[0][first:last], values[1]), part, shape), together[first:last])


@some
@given(contexts=st.lists(st.integers(0, POSITIONS - 1), min_size=2, max_size=4), shape=st.sampled_from(SHAPES))
def test_a_decoded_row_has_the_same_bits_alone_among_others_and_beside_a_prefill(attend, contexts, shape):
    count = len(contexts)
    values, batch = drawn(count, shape), layout([1] * count, contexts, LISTED, PAGES)
    together = attend(values, batch, shape)
    for b, context in enumerate(contexts):
        alone = {
            "starts": np.int32([0]),
            "lengths": np.int32([1]),
            "context": np.int32([context]),
            "visible": batch["visible"][b : b + 1, : context // 16 + 1],
        }
        assert np.array_equal(attend((values[0][b : b + 1], values[1]), alone, shape)[0], together[b])
    # the last sequence now has a second row, so that the call is no decode
    if contexts[-1] + 1 < POSITIONS:
        more = {**batch, "lengths": np.int32([1] * (count - 1) + [2])}
        rows = np.concatenate([values[0], values[0][:1]])
        assert np.array_equal(attend((rows, values[1]), more, shape)[:count], together)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
@pytest.mark.parametrize("lengths", [[1, 1], [300]])
def test_scores_of_zero_and_huge_ones_give_numbers(attend, scale, lengths):
    shape = SHAPES[0]
    call = layout(lengths, [339] * len(lengths), LISTED, PAGES)
    values = drawn(sum(lengths), shape, scale)
    out = attend(values, call, shape)
    assert np.isfinite(out).all()
    if scale < 1e5:  # beyond, the reference's own scores differ by whole units
        assert distance(out, reference(values, call, shape)) <= (1e-3 if scale else 3e-6)


@pytest.mark.parametrize(("length", "context"), [(7, 20), (1, 26), (40, 230), (1, 269)])
def test_nothing_past_the_last_visible_position_is_read(attend, length, context):
    shape = SHAPES[0]
    call, seen = layout([length], [context], LISTED, PAGES), length + context
    qkv, pages = drawn(length, shape)
    poisoned, last = np.full_like(pages, np.nan), seen % 16
    visible = call["visible"][0, : -(-seen // 16)]
    poisoned[visible] = pages[visible]
    keys, values = (poisoned[visible[-1], 1, side] for side in (0, 1))
    keys.reshape(2, -1, 16)[:, :, last:] = np.nan
    values.reshape(2, 16, -1)[:, last:] = np.nan
    call["visible"][0, -(-seen // 16) :] = 1 << 30
    assert np.array_equal(attend((qkv, poisoned), call, shape), attend((qkv, pages), call, shape))
