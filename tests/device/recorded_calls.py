"""A GPU that is none: addresses with values, calls that are run or recorded, and graphs that are replayed."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

from modularbase_core.device.cudart import CudaError
from modularbase_core.device.tensor import Tensor


class _Handle:
    def __init__(self, address):
        self._address = address

    def data_ptr(self):
        return self._address


class FakeGpu:
    """Stands for CUDA's runtime, TVM's launches and the memory; `faulty` makes recording fail."""

    def __init__(self):
        self.memory = {}
        self.counts = Counter()
        self.graphs = {}
        self.faulty = False
        self._recording = None
        self._stream = 0
        self._next = 1000

    def tensor(self, value=0, shape=(1,)):
        self._next += 64
        self.memory[self._next] = value
        return Tensor(shape, "int32", _Handle(self._next), None, self)

    def value(self, tensor):
        return self.memory[tensor.address]

    def like(self, tensor):
        assert self._recording is None, "memory is taken while a stream is recorded"
        return self.tensor(shape=tensor.shape)

    @contextmanager
    def launching_on(self, stream):
        self._stream = stream
        yield
        self._stream = 0

    def give(self, work, stream):
        """Run work, or record it where its stream is being recorded."""
        if self._recording is not None and stream == 7:
            self._recording.append(work)
        else:
            work()

    def program(self, name, inputs, weights, out):
        """Return a call that adds up what lies at addresses, as a kernel would, and whose memory is lent anew after."""

        def call():
            self.counts[name] += 1
            self.give(lambda: self._write(out, inputs, weights), self._stream)
            return out

        return call

    def _write(self, out, inputs, weights):
        self.memory[out.address] = sum(self.memory[one.address] for one in (*inputs, *weights))

    def new_stream(self):
        return 7

    def begin_capture(self, stream):
        assert stream == 7
        assert self._recording is None
        self._recording = []

    def end_capture(self, stream):
        works, self._recording = self._recording, None
        if self.faulty:
            raise CudaError("cudaStreamEndCapture: operation failed due to a previous error during capture")
        number = 1 + self.counts["recorded"]
        self.counts["recorded"] += 1
        self.graphs[number] = works
        return number

    def launch(self, graph, stream):
        assert stream == 0
        self.counts["launched"] += 1
        for work in self.graphs[graph]:
            work()

    def drop(self, graph):
        del self.graphs[graph]

    def copy(self, target, source, size_bytes, kind, stream):
        def work():
            self.memory[target] = self.memory[source]

        self.give(work, stream)

    def synchronise(self, stream):
        pass
