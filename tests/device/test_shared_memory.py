"""On the CPU torch, numpy and TVM hold one memory of a weight, a page, an input and a result; copies are counted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm  # noqa: F401  # whole: another test of this process may need the compiler
from tiny_packs import PACK, manifest, write_pack

from modularbase_core.context.hot import make_pages
from modularbase_core.device.executable import Device, Executable, Tensor
from modularbase_core.device.layouts import PlacedWeights, lay_out, planned_bytes
from modularbase_core.device.metadata import InputMeta
from modularbase_core.device.repacked import RepackedWeights
from modularbase_core.device.weights import WeightsFile, write_weights
from modularbase_core.sdk.manifest import WEIGHTS_FILE, Manifest
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.turn.rows import RowBuffers
from tests.device.test_repacked import META

WHOLE = META.programs["run"]
ROWS = tuple(item for item in WHOLE.parameters if item.layout == "row")
TAKEN = replace(META, programs={"run": replace(WHOLE, parameters=ROWS)})
"""An artefact whose program takes every weight of a pack as it is in the file."""
BESIDE = 16 << 10
"""Bytes that Python's own objects may take while what is many times as large is moved."""


class Program:
    """Stands for compiled code: notes where its arguments lie, adds 1 to the first as torch sees it, and returns it."""

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def __call__(self, *handles: object) -> object:
        self.addresses = [torch.from_dlpack(handle).data_ptr() for handle in handles]  # type: ignore[arg-type]
        torch.from_dlpack(handles[0]).add_(1)  # type: ignore[arg-type]
        return handles[0]


@pytest.fixture(scope="module")
def device() -> Device:
    return Device(threads=1)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def placed(device: Device, program: Program) -> PlacedWeights:
    """Weights of a pack, not yet filled, for the program."""
    return PlacedWeights(Executable(TAKEN, device, {"run": program}), device)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "pack", manifest("pack", "domain", PACK)) / WEIGHTS_FILE


def address(tensor: Tensor) -> int:
    """Return where numpy, TVM and torch find a tensor."""
    (found,) = {tensor.numpy().ctypes.data, tensor.address, torch.from_dlpack(tensor.handle).data_ptr()}
    return found


def allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that numpy and Python took at a time in `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_array_is_shown_to_tvm_and_torch_where_it_is(device: Device) -> None:
    host = device.host_bytes(48).view(np.float32).reshape(3, 4)
    tensor = device.view(host)
    assert address(tensor) == host.ctypes.data
    torch.from_dlpack(tensor.handle)[1, 2] = 7
    assert host[1, 2] == tensor.handle.numpy()[1, 2] == 7


def test_programs_find_weights_where_they_were_placed(
    placed: PlacedWeights, device: Device, program: Program, weights: Path
) -> None:
    region = placed._region._host
    assert region is not None
    for change in range(2):  # filled anew, they are where they were
        body = lay_out(TAKEN, WeightsFile(weights, parameter_shapes(PACK))) + np.uint8(change)
        placed.fill(body)
        placed.bind("run")(device.tensor((1,)))
        tensors = list(placed._tensors.values())
        assert program.addresses[1:] == [address(tensor) for tensor in tensors]
        for tensor in tensors:
            start = tensor.address - region.ctypes.data
            assert 0 <= start <= planned_bytes(TAKEN) - tensor.size_bytes
            assert tensor.handle.numpy().tobytes() == body[start : start + tensor.size_bytes].tobytes()


def test_weights_are_copied_once_from_their_mapped_file(placed: PlacedWeights, weights: Path, tmp_path: Path) -> None:
    digest = Manifest.read(weights.parent / "manifest.json").files[WEIGHTS_FILE]
    repacked = RepackedWeights(tmp_path / "cache", 1 << 30)
    repacked.open(weights, digest, TAKEN)
    body = RepackedWeights(tmp_path / "cache", 1 << 30).open(weights, digest, TAKEN)
    assert body.nbytes == planned_bytes(TAKEN) > 8 * BESIDE
    assert not body.flags.owndata  # it is the file's mapping
    assert allocated(lambda: placed.fill(body)) < BESIDE


def test_torchs_weights_reach_programs_by_one_copy(
    placed: PlacedWeights, device: Device, program: Program, tmp_path: Path
) -> None:
    learnt = {name: torch.randn(shape) for name, shape in parameter_shapes(PACK).items()}
    shown = {name: value.float().numpy() for name, value in learnt.items()}  # as training ships them
    assert all(shown[name].ctypes.data == value.data_ptr() for name, value in learnt.items())
    # laying out makes the bytes of the result, a matrix at a time beside them, and filling makes none
    largest = max(values.nbytes for values in shown.values())
    assert allocated(lambda: placed.fill(shown)) < planned_bytes(TAKEN) + largest + BESIDE
    placed.bind("run")(device.tensor((1,)))
    assert len(learnt) == len(ROWS)
    for name, value in learnt.items():
        assert torch.equal(torch.from_dlpack(placed._tensors[name, "row"].handle), value)
    # to a file they go by one copy too: the bytes that are written
    size = sum(values.nbytes for values in shown.values())
    assert allocated(lambda: write_weights(tmp_path / "fp32", shown, form="fp32")) < size + largest + BESIDE


def test_pages_are_changed_where_they_are(device: Device, program: Program, placed: PlacedWeights) -> None:
    pages = make_pages(InputMeta("pages", "float32", ("P", 64, 64), True), device, 9)
    before, run = address(pages), placed.bind("run")
    for _ in range(3):
        run(pages)
        assert program.addresses[0] == before == address(pages)
    assert (pages.numpy() == 3).all()
    pages.write_row(1, np.zeros((64, 64), np.float32))
    assert pages.handle.numpy()[1].max() == 0
    assert allocated(lambda: run(pages)) < BESIDE


def test_an_input_is_copied_once_to_where_it_was_before(
    device: Device, program: Program, placed: PlacedWeights
) -> None:
    buffers, run = RowBuffers(device), placed.bind("run")
    values = np.zeros(1 << 16, np.float32)
    first = buffers.put("rows", values)
    for number in range(3):
        values[:] = number
        again = buffers.put("rows", values)
        run(again)
        assert program.addresses[0] == address(again) == first.address != values.ctypes.data
        assert (again.numpy() == number + 1).all()
        assert (values == number).all()
    assert allocated(lambda: buffers.put("rows", values)) < BESIDE


def test_a_result_is_read_where_the_program_left_it(device: Device, program: Program, placed: PlacedWeights) -> None:
    given, run = device.tensor((1 << 16,)), placed.bind("run")
    result = run(given)
    assert address(result) == program.addresses[0]
    assert allocated(lambda: run(given).numpy()) < BESIDE
