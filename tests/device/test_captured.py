"""Graphs of calls: recorded when they come again, right after a swap, dropped with their memory, and bounded."""

import warnings

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modularbase_core.device.captured import Graphs, Storages
from tests.device.recorded_calls import FakeGpu


@pytest.fixture
def gpu():
    return FakeGpu()


def graphs_of(gpu, most=4):
    return Graphs(gpu, Storages(), gpu.like, gpu.launching_on, most)


def addresses(tensors):
    return frozenset(tensor.address for tensor in tensors)


def test_a_call_is_run_then_recorded_then_replayed(gpu):
    graphs, inputs, weights, out = graphs_of(gpu), [gpu.tensor(1)], [gpu.tensor(10)], gpu.tensor()
    call = gpu.program("run", inputs, weights, out)
    assert [gpu.value(graphs.run("run", inputs, addresses(weights), call)) for _ in range(5)] == [11] * 5
    # once by itself, once before it is recorded, once while it is
    assert (gpu.counts["run"], gpu.counts["recorded"], gpu.counts["launched"]) == (3, 1, 4)


def test_a_replay_reads_what_was_written_since(gpu):
    graphs, inputs, weights, out = graphs_of(gpu), [gpu.tensor(1)], [gpu.tensor(10)], gpu.tensor()
    call = gpu.program("run", inputs, weights, out)
    for value in (1, 2, 3, 4):
        gpu.memory[inputs[0].address] = value
        assert gpu.value(graphs.run("run", inputs, addresses(weights), call)) == value + 10
    gpu.memory[weights[0].address] = 20  # another pack in the same slot
    assert gpu.value(graphs.run("run", inputs, addresses(weights), call)) == 24
    assert gpu.counts["recorded"] == 1


def test_a_result_outlives_the_memory_of_its_call(gpu):
    graphs, inputs, weights, out = graphs_of(gpu), [gpu.tensor(1)], [], gpu.tensor()
    call = gpu.program("run", inputs, weights, out)
    results = [graphs.run("run", inputs, frozenset(), call) for _ in range(2)]
    gpu.memory[out.address] = -1  # the next program writes here
    assert gpu.value(results[-1]) == 1
    assert results[-1].address != out.address


def test_calls_that_come_once_are_not_recorded(gpu):
    graphs = graphs_of(gpu)
    for _ in range(5):
        inputs = [gpu.tensor(1)]
        graphs.run("run", inputs, frozenset(), gpu.program("run", inputs, [], gpu.tensor()))
    assert (gpu.counts["recorded"], len(graphs)) == (0, 0)


def test_calls_of_other_shapes_at_the_same_address_are_other_calls(gpu):
    graphs, out = graphs_of(gpu), gpu.tensor()
    one = gpu.tensor(1, (1,))
    other = type(one)((2,), one.dtype, one.handle, None, gpu)
    for tensor in (one, other, one, other):
        graphs.run("run", [tensor], frozenset(), gpu.program("run", [tensor], [], out))
    assert (gpu.counts["recorded"], len(graphs)) == (2, 2)


def test_what_cannot_be_recorded_is_called_and_told_once(gpu):
    graphs, inputs, out = graphs_of(gpu), [gpu.tensor(3)], gpu.tensor()
    gpu.faulty = True
    call = gpu.program("run", inputs, [], out)
    graphs.run("run", inputs, frozenset(), call)
    with pytest.warns(RuntimeWarning, match=r"CUDA graphs are off.*previous error during capture"):
        assert gpu.value(graphs.run("run", inputs, frozenset(), call)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu.value(graphs.run("run", inputs, frozenset(), call)) == 3
    assert len(graphs) == 0


def test_a_call_that_raises_leaves_no_stream_recording(gpu):
    graphs, inputs, out = graphs_of(gpu), [gpu.tensor(3)], gpu.tensor()
    call, calls = gpu.program("run", inputs, [], out), []

    def third_raises():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("an allocation is not allowed here")
        return call()

    graphs.run("run", inputs, frozenset(), third_raises)
    with pytest.warns(RuntimeWarning, match="an allocation is not allowed here"):
        assert gpu.value(graphs.run("run", inputs, frozenset(), third_raises)) == 3
    gpu.begin_capture(7)  # asserts that none is under way
    assert gpu.end_capture(7) != 0


def test_recorded_calls_share_their_memory_and_no_others():
    storages, made = Storages(), []

    def original(machine, size):
        made.append(object())
        return made[-1]

    assert storages.allocate(original, None, 8) is not storages.allocate(original, None, 8)
    calls = []
    for _ in range(2):
        with storages.lending():
            calls.append([storages.allocate(original, None, size) for size in (8, 8, 16)])
    assert calls[0] == calls[1]
    assert len(set(map(id, calls[0]))) == 3
    assert len(made) == 5
    assert storages.allocate(original, None, 8) not in calls[0]


class Swaps(RuleBasedStateMachine):
    """Packs come and go in slots, slots are carved anew, rows change: a result is always that of the pack now there."""

    def __init__(self):
        super().__init__()
        self.gpu = FakeGpu()
        self.graphs = graphs_of(self.gpu, most=3)
        self.slots = [self._carved(10), self._carved(20)]
        self.inputs = {rows: self.gpu.tensor(0, (rows,)) for rows in (1, 2, 3)}
        self.recorded_before = 0

    def _carved(self, value):
        return [self.gpu.tensor(value), self.gpu.tensor(value + 1)]

    @rule(slot=st.integers(0, 1), value=st.integers(0, 99))
    def swap(self, slot, value):
        for tensor in self.slots[slot]:
            self.gpu.memory[tensor.address] = value

    @rule(slot=st.integers(0, 1), value=st.integers(0, 99))
    def carve_anew(self, slot, value):
        freed = addresses(self.slots[slot])
        self.graphs.forget(freed)
        self.slots[slot] = self._carved(value)
        for address in freed:
            del self.gpu.memory[address]  # a replay that reads it fails

    @rule(slot=st.integers(0, 1), rows=st.integers(1, 3), value=st.integers(0, 99))
    def step(self, slot, rows, value):
        given, weights = self.inputs[rows], self.slots[slot]
        self.gpu.memory[given.address] = value
        call = self.gpu.program("run", [given], weights, self.gpu.tensor())
        result = self.graphs.run("run", [given], addresses(weights), call)
        assert self.gpu.value(result) == value + sum(self.gpu.value(one) for one in weights)

    @precondition(lambda self: len(self.graphs) == 3)
    @rule()
    def forget_nothing(self):
        self.graphs.forget([])
        assert len(self.graphs) == 3

    @invariant()
    def graphs_are_few_and_none_is_lost(self):
        assert len(self.graphs) <= 3
        assert len(self.gpu.graphs) == len(self.graphs)


TestSwaps = Swaps.TestCase
TestSwaps.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
