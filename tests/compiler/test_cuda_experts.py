"""The CUDA kernels of a quantised mixture, emulated on the CPU: who goes where, products by expert, and their sum."""

import shutil

import numpy as np
import pytest
import torch
from modularbase_compiler.kernels.cuda import CudaKernels

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import arrange
from modularbase_core.graph.quantised import moe_groups
from tests.compiler.emulated_int8 import prelude
from tests.compiler.emulation import Emulated
from tests.compiler.test_cuda_quantised import BLOCK, FEW, MANY, quantised, random, relative
from tests.compiler.test_expert_kernels import assert_listed

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

KERNELS = CudaKernels("float32")
EXPERTS, CHOSEN, WIDTH, FFN = 4, 2, 64, 32
THREADS = (128, 1)


@pytest.fixture(scope="module")
def emulate(tmp_path_factory):
    """Return what emulates a kernel, once."""
    made = {}

    def kernel(name, *shape, **choices):
        key = (name, shape, tuple(choices.items()))
        if key not in made:
            width = 128 if name in ("route", "combine") else 32
            made[key] = Emulated(
                getattr(KERNELS, name)(*shape, **choices), tmp_path_factory.mktemp(name), prelude(width)
            )
        return made[key]

    return kernel


def routed(emulate, logits, chosen=CHOSEN):
    pairs = len(logits) * chosen
    order, first, gates = np.full(pairs, -1, np.int32), np.zeros(EXPERTS + 1, np.int32), np.zeros(pairs, np.float32)
    kernel = emulate("route", EXPERTS, chosen)
    kernel((1, 1), THREADS, logits=logits, order=order, first=first, gates=gates, rows=len(logits))
    return order, first, gates


def product(emulate, part, x, w, bits, order, first, shared):
    """Run a product; `w` is as it lies in memory."""
    n, k = len(w) // EXPERTS * 32, w.shape[1] * 32
    y = np.full((len(order), n), np.nan, np.float32)
    tile = 32 if part == FEW else 64
    grid = (-(-n // 32) if part == FEW else -(-n // 128), len(order) // tile + min(len(order), EXPERTS))
    q, scale = quantised(x)
    values = {"q": q, "scale": scale, "w": w, "order": order, "first": first, "y": y}
    kernel = emulate("expert_groups", n, k, bits, experts=EXPERTS, shared=shared)
    kernel(grid, BLOCK, part, rows=len(x), made=len(order), **values)
    return y


def run_mixture(emulate, part, x, logits, gate_up, down, bits):
    gate_up, down = (arrange(one, f"t32q{bits}") for one in (gate_up, down))
    order, first, gates = routed(emulate, logits)
    made = product(emulate, part, x, gate_up, bits, order, first, CHOSEN)
    activated = torch.nn.functional.gelu(torch.from_numpy(made), approximate="tanh").numpy()
    parts = product(emulate, part, activated, down, bits, order, first, 1)
    y = np.zeros((len(x), WIDTH), np.float32)
    emulate("combine", CHOSEN, WIDTH)((len(x), 1), THREADS, gates=gates, parts=parts, y=y, rows=len(x))
    return y


def weights():
    return random(EXPERTS, FFN, WIDTH, seed=1), random(EXPERTS, WIDTH, FFN, seed=2)


@pytest.mark.parametrize(("rows", "chosen"), [(1, 2), (37, 1), (150, 3)])
def test_rows_are_listed_by_the_experts_that_torch_chooses(emulate, rows, chosen):
    logits = random(rows, EXPERTS, seed=rows)
    order, first, gates = routed(emulate, logits, chosen)
    assert_listed(order, first, gates, logits, chosen)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 13, 40])
def test_a_mixture_is_its_definition_by_either_kernel_with_the_same_bits(emulate, bits, rows):
    x, logits, (gate_up, down) = random(rows, WIDTH), random(rows, EXPERTS, seed=3), weights()
    few, many = (run_mixture(emulate, part, x, logits, gate_up, down, bits) for part in (FEW, MANY))
    matrices = [np.ascontiguousarray(one) for w in (gate_up, down) for one in quantise_groups(w, bits)]
    expected = moe_groups(*map(torch.from_numpy, (x, logits, *matrices)), CHOSEN, "gelu", bits).numpy()
    # a last bit of an activation may tip a value over to the next integer
    assert relative(few, expected) < 1e-2
    assert np.array_equal(few, many)


def test_a_row_gets_the_same_bits_in_any_company(emulate):
    x, logits, matrices = random(37, WIDTH), random(37, EXPERTS, seed=3), weights()
    together = run_mixture(emulate, MANY, x, logits, *matrices, 8)
    for row in (0, 17, 36):
        alone = run_mixture(emulate, FEW, x[row : row + 1].copy(), logits[row : row + 1].copy(), *matrices, 8)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("part", [FEW, MANY])
def test_experts_that_no_row_chose_are_not_read(emulate, part):
    logits = np.tile(np.array([0, 5, -5, 4], np.float32), (9, 1))
    order, first, _ = routed(emulate, logits)
    gate_up = arrange(weights()[0], "t32q8")
    expected = product(emulate, part, random(9, WIDTH), gate_up, 8, order, first, CHOSEN)
    gate_up.reshape(EXPERTS, -1)[[0, 2]] = 255  # as scales: not a number
    assert np.array_equal(product(emulate, part, random(9, WIDTH), gate_up, 8, order, first, CHOSEN), expected)
