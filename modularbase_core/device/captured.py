"""Calls of programs as CUDA graphs: recorded when a call comes again, then replayed as one launch.

A graph holds addresses, so it is found by them: of inputs, of weights, and by shapes. A slot that is filled anew keeps
its addresses and so its graphs. Where a call cannot be recorded, all go on without graphs.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from modularbase_core.device.cudart import CudaError, Handle, Runtime
from modularbase_core.device.tensor import Tensor

MOST_GRAPHS: Final = 128
"""Kept at once. Each takes some 100 KB of the driver's, and its result."""
MOST_ROWS: Final = 32
"""Rows of a call that is recorded: decoding and verifying. Longer calls keep the GPU busy as they are."""
_REMEMBERED: Final = 1024
"""Calls that came once and are known again."""

Call = Callable[[], Tensor]
Key = tuple[object, ...]


class Storages:
    """What programs allocate while their calls are recorded: the same memory for all of them, never given back.

    A replayed graph writes where it wrote when it was recorded. TVM would lend that to others as soon as the call is
    over; among recorded calls it may be shared, as they run one after the other and their results are copied out.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, list[Any]] = {}  # Any: TVM's storage, which has no types
        self._lent = threading.local()

    def allocate(self, original: Callable[..., Any], machine: Any, *wanted: Any) -> Any:
        """Stand for TVM's allocation: `original`, outside of `lending`. wanted: bytes, device, dtype, scope."""
        lent: Counter[Key] | None = getattr(self._lent, "counts", None)
        if lent is None:
            return original(machine, *wanted)
        key = tuple(map(str, wanted))
        kept = self._kept.setdefault(key, [])
        if lent[key] == len(kept):
            kept.append(original(machine, *wanted))
        lent[key] += 1
        return kept[lent[key] - 1]

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Within the block, one call of a program in this thread allocates from what is kept."""
        self._lent.counts = Counter()
        try:
            yield
        finally:
            self._lent.counts = None


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Handle
    result: Tensor
    addresses: frozenset[int]


class Graphs:
    """The graphs of a device. like: makes a tensor as another; launching_on: lets TVM launch on a stream for a block.

    All but `forget` is called from one thread at a time.
    """

    def __init__(
        self,
        runtime: Runtime,
        storages: Storages,
        like: Callable[[Tensor], Tensor],
        launching_on: Callable[[Handle], AbstractContextManager[None]],
        most: int = MOST_GRAPHS,
    ) -> None:
        self._runtime, self._storages, self._like, self._launching_on = runtime, storages, like, launching_on
        self._most, self._works = most, True
        self._stream: Handle | None = None
        self._once: OrderedDict[Key, None] = OrderedDict()
        self._captured: OrderedDict[Key, _Captured] = OrderedDict()
        self._lock = threading.Lock()  # a slot may be carved anew in the prefetcher's thread

    def __len__(self) -> int:
        return len(self._captured)

    def run(self, program: object, inputs: Sequence[Tensor], weights: frozenset[int], call: Call) -> Tensor:
        """Return what `call` does, which runs `program` on these inputs, and on weights at these addresses.

        The first time it is just called, the second it is recorded. What a graph returns is written over when the same
        call comes again.
        """
        if not self._works:
            return call()
        addresses = [tensor.address for tensor in inputs]
        key = (program, weights, *addresses, *(tensor.shape for tensor in inputs))
        with self._lock:
            found = self._captured.get(key)
            if found is not None:
                self._captured.move_to_end(key)
        if found is None:
            if not self._is_known(key):
                return call()
            try:
                found = self._capture(call, weights.union(addresses))
            except Exception as error:  # TVM raises many kinds
                self._give_up(error)
                return call()
            with self._lock:
                self._captured[key] = found
                spare = [self._captured.popitem(last=False)[1] for _ in range(len(self._captured) - self._most)]
            self._drop(spare)
        self._runtime.launch(found.graph, 0)
        return found.result

    def forget(self, addresses: Collection[int]) -> None:
        """Drop the graphs that read or write tensors at `addresses`, which are about to be freed."""
        gone = set(addresses)
        with self._lock:
            keys = [key for key, one in self._captured.items() if not gone.isdisjoint(one.addresses)]
            dropped = [self._captured.pop(key) for key in keys]
        self._drop(dropped)

    def _is_known(self, key: Key) -> bool:
        """Tell whether a call came before, and remember it otherwise."""
        if key in self._once:
            del self._once[key]
            return True
        self._once[key] = None
        while len(self._once) > _REMEMBERED:
            self._once.popitem(last=False)
        return False

    def _capture(self, call: Call, addresses: frozenset[int]) -> _Captured:
        if self._stream is None:
            self._stream = self._runtime.new_stream()
        with self._storages.lending():
            result = self._like(call())  # whatever has to be allocated or loaded is, before anything is recorded
        with self._storages.lending():
            self._runtime.begin_capture(self._stream)
            try:
                with self._launching_on(self._stream):
                    made = call()
                # the call's own memory is the next call's too
                result.take(made, self._stream)
            except BaseException:
                with suppress(CudaError):  # a stream that is left recording could never be used again
                    self._runtime.drop(self._runtime.end_capture(self._stream))
                raise
            return _Captured(self._runtime.end_capture(self._stream), result, addresses)

    def _give_up(self, error: Exception) -> None:
        self._works = False
        with self._lock:
            dropped, self._captured = list(self._captured.values()), OrderedDict()
        self._drop(dropped)
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        warnings.warn(f"CUDA graphs are off, as a call could not be recorded ({first})", RuntimeWarning, stacklevel=3)

    def _drop(self, graphs: Collection[_Captured]) -> None:
        for one in graphs:
            with suppress(CudaError):
                self._runtime.drop(one.graph)
