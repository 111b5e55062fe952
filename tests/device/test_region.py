import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.device.executable import ALIGNMENT, Device, Tensor
from modularbase_core.device.region import Region, form_bytes

FORMS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 5), max_size=3).map(tuple), st.sampled_from(["float32", "float16", "int32", "uint8"])
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def device():
    return Device("cpu")


@given(forms=FORMS)
def test_tensors_lie_one_behind_the_other_aligned_and_apart(device, forms):
    region = Region(device, sum(map(form_bytes, forms)))
    tensors = region.carve(forms)
    assert [(tensor.shape, tensor.dtype) for tensor in tensors] == forms
    for number, tensor in enumerate(tensors):
        assert tensor.numpy().ctypes.data % ALIGNMENT == 0
        tensor.write(np.full(tensor.shape, number + 1, tensor.dtype))
    for number, tensor in enumerate(tensors):
        assert (tensor.numpy() == number + 1).all()
        assert (tensor.handle.numpy() == number + 1).all()


def test_filling_is_seen_by_every_tensor_and_by_the_programs(device):
    region = Region(device, 256)
    first, second = region.carve([((3,), "float32"), ((2, 2), "float32")])
    values = np.zeros(128, np.uint8)
    values[:12] = np.array([1, 2, 3], np.float32).view(np.uint8)
    values[64:80] = np.array([4, 5, 6, 7], np.float32).view(np.uint8)
    region.fill(values)
    assert first.handle.numpy().tolist() == [1, 2, 3]
    assert second.handle.numpy().tolist() == [[4, 5], [6, 7]]


class FakeGpu:
    """A device that programs alone see: its tensors are written and read by copies."""

    name = "cuda"

    def __init__(self):
        self.allocations = 0

    def tensor(self, shape, dtype):
        self.allocations += 1
        return Tensor(shape, dtype, FakeHandle(shape, dtype), None)

    def upload(self, values):
        for tensor, whole in values:
            tensor.write(whole.view(tensor.dtype).reshape(tensor.shape))

    def forget(self, tensors):
        self.forgotten = len(tensors)


class FakeHandle:
    def __init__(self, shape, dtype):
        self.values = np.zeros(shape, dtype)

    def copyfrom(self, values):
        assert (values.shape, values.dtype) == (self.values.shape, self.values.dtype)
        self.values = values.copy()

    def numpy(self):
        return self.values


def test_a_gpus_tensors_are_apart_filled_one_by_one_and_kept_while_their_forms_stay():
    gpu = FakeGpu()
    region = Region(gpu, 256)
    forms = [((3,), "float16"), ((2, 2), "float32"), ((5,), "float32")]
    half, single, pages = region.carve(forms)
    values = np.zeros(128, np.uint8)
    values[:6] = np.array([1, 2, 3], np.float16).view(np.uint8)
    values[64:80] = np.array([4, 5, 6, 7], np.float32).view(np.uint8)
    region.fill(values)
    assert half.numpy().tolist() == [1, 2, 3]
    assert single.numpy().tolist() == [[4, 5], [6, 7]]
    assert pages.numpy().tolist() == [0] * 5
    assert region.carve(forms)[0] is half
    assert gpu.allocations == 3
    region.carve(forms[:1])
    assert gpu.allocations == 4


def test_carving_again_gives_the_same_bytes(device):
    region = Region(device, 128)
    (one,) = region.carve([((4,), "float32")])
    one.write(np.arange(4, dtype=np.float32))
    assert region.carve([((4,), "float32")])[0] is one
    (other,) = region.carve([((2, 2), "float32")])
    assert other.numpy().tolist() == [[0, 1], [2, 3]]


def test_a_region_holds_no_more_than_it_was_made_for(device):
    with pytest.raises(AssertionError, match="more is carved"):
        Region(device, 64).carve([((17,), "float32")])
