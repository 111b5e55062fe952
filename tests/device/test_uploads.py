"""Values on their way to a GPU: through two blocks of pinned memory, neither filled while it is still being sent."""

import ctypes

import numpy as np
import pytest

from modularbase_core.device.tensor import Tensor
from modularbase_core.device.uploads import Uploads


class LateGpu:
    """CUDA's runtime with copies that happen as late as they may: when a mark behind them, or a stream, is awaited."""

    def __init__(self):
        self.given, self.marks, self.kept, self.said = [], {}, [], []

    def memory(self, size):
        self.kept.append(np.zeros(size, np.uint8))
        return self.kept[-1].ctypes.data

    pinned = memory

    def tensor(self, size):
        address = self.memory(size)
        handle = type("Handle", (), {"data_ptr": lambda self: address})()
        return Tensor((size,), "uint8", handle, None, self), self.kept[-1]

    def new_stream(self):
        return 7

    def new_event(self):
        self.marks[len(self.marks)] = 0
        return len(self.marks) - 1

    def record(self, event, stream):
        self.marks[event] = len(self.given)

    def wait(self, event):
        self._do(self.marks[event])

    def synchronise(self, stream):
        self.said.append(stream)
        if stream == 7:
            self._do(len(self.given))

    def copy(self, target, source, size_bytes, kind, stream):
        assert (kind, stream) == (1, 7)
        self.given.append((target, source, size_bytes))

    def _do(self, count):
        for number, one in enumerate(self.given[:count]):
            if one is not None:
                ctypes.memmove(*one)
                self.given[number] = None


@pytest.mark.parametrize("sizes", [[1], [16], [17], [5, 11, 16, 0, 100, 3], [64, 64, 64]])
def test_bytes_arrive_whole_though_copies_are_late(sizes):
    gpu, random = LateGpu(), np.random.default_rng(0)
    uploads = Uploads(gpu, 16)
    for _ in range(2):
        made = [gpu.tensor(size + 1) for size in sizes]
        values = [random.integers(1, 256, size).astype(np.uint8) for size in sizes]
        uploads.send([(tensor, one) for (tensor, _), one in zip(made, values, strict=True)])
        for (_, there), one in zip(made, values, strict=True):
            assert there[:-1].tolist() == one.tolist()
            assert there[-1] == 0


def test_what_the_gpu_still_reads_is_waited_for_before_it_is_written():
    gpu = LateGpu()
    Uploads(gpu, 16).send([(gpu.tensor(40)[0], np.ones(40, np.uint8))])
    assert gpu.said[0] == 0


def test_pinned_memory_is_taken_once_and_only_when_it_is_needed():
    gpu = LateGpu()
    uploads = Uploads(gpu, 16)
    assert not gpu.kept
    tensor, _ = gpu.tensor(40)
    for _ in range(3):
        uploads.send([(tensor, np.ones(40, np.uint8))])
    assert [one.size for one in gpu.kept] == [40, 16, 16]
