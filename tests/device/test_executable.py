"""Loading and running without torch and without the compiler, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest

from modularbase_core.device.executable import ALIGNMENT, Device, Executable, _fitting
from modularbase_core.device.metadata import read_meta
from modularbase_core.errors import ArtefactError
from tests.device.test_artefact import write_artefact

IMPORTS = """
import sys
import modularbase_core.device.executable as executable
assert "tvm" not in sys.modules
device = executable.Device(threads=1)
import os
assert "torch" not in sys.modules and os.environ["TVM_NUM_THREADS"] == "1"
assert not hasattr(sys.modules["tvm"], "relax")
tensor = device.tensor((3, 5))
tensor.numpy()[1] = 2
assert tensor.handle.numpy().sum() == 10
"""


@pytest.fixture(scope="module")
def device():
    import tvm  # noqa: F401  # whole: another test of this process may need the compiler

    return Device(threads=1)


def test_loading_imports_neither_torch_nor_the_compiler(monkeypatch):
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_tensors_are_zero_aligned_and_shared_with_numpy(device, dtype):
    tensor = device.tensor((3, 7), dtype)
    assert tensor.numpy().ctypes.data % ALIGNMENT == 0
    assert not tensor.numpy().any()
    tensor.write(np.arange(21).reshape(3, 7))
    assert tensor.handle.numpy()[2, 6] == 20
    assert (tensor.shape, tensor.dtype) == ((3, 7), dtype)


def test_a_row_is_copied_over_another(device):
    tensor = device.put(np.arange(12).reshape(3, 4).astype(np.float32))
    tensor.copy_row(0, 2)
    assert tensor.numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_a_put_array_is_a_copy(device):
    values = np.arange(4, dtype=np.int32)
    tensor = device.put(values)
    values[:] = 0
    assert tensor.numpy().tolist() == [0, 1, 2, 3]


def test_a_wrapped_result_is_a_view(device):
    tensor = device.tensor((2,))
    device.wrap(tensor.handle).numpy()[0] = 3
    assert tensor.numpy()[0] == 3


def test_code_that_cannot_be_loaded_is_told_in_a_sentence(device, tmp_path):
    with pytest.raises(ArtefactError, match="build the artefact again"):
        Executable.load(write_artefact(tmp_path), device)


def test_binding_names_what_is_missing_or_misshapen(device, tmp_path):
    executable = Executable(read_meta(write_artefact(tmp_path)), device, {"route": None})
    with pytest.raises(ArtefactError, match=r"needs the weight 'norm\.weight'"):
        executable.bind("route", {})
    with pytest.raises(ArtefactError, match=r"float32 \[64\], got float32 \[65\]"):
        executable.bind("route", {"norm.weight": device.tensor((65,))})


class _Graphs:
    def __init__(self):
        self.asked = []

    def run(self, program, inputs, weights, call):
        self.asked.append((program, inputs, weights))
        return call()


def test_on_a_gpu_short_calls_are_recorded_and_found_by_their_weights(tmp_path):
    device = Device(threads=1)
    device.graphs = graphs = _Graphs()
    meta = read_meta(write_artefact(tmp_path))
    executable = Executable(meta, device, {"route": lambda first, *_: first})
    weights = {item.name: device.tensor(item.stored_shape, item.dtype) for item in meta.programs["route"].parameters}
    bound = executable.bind("route", weights)
    short, long = device.tensor((32, 4)), device.tensor((33, 4))
    assert bound(short).shape == (32, 4)
    assert bound(long).shape == (33, 4)
    ((_, inputs, addresses),) = graphs.asked
    assert inputs == (short,)
    assert addresses == {tensor.address for tensor in weights.values()}


class _Modules:
    def __init__(self, *names):
        self.modules = dict.fromkeys(names, "")


@pytest.mark.parametrize(("gpu", "chosen"), [("sm_75", "sm_75"), ("sm_87", "sm_86"), ("sm_89", "sm_89")])
def test_a_gpu_gets_the_newest_code_of_its_generation(gpu, chosen):
    assert _fitting(_Modules("sm_75", "sm_86", "sm_89", "sm_90"), gpu) == chosen


@pytest.mark.parametrize("gpu", ["sm_70", "sm_80", "sm_100"])
def test_a_gpu_without_fitting_code_is_refused(gpu):
    with pytest.raises(ArtefactError, match=f"this GPU is {gpu}"):
        _fitting(_Modules("sm_75", "sm_86"), gpu)
