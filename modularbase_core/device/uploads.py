"""Copies from the host to a GPU beside what it computes: on a stream of their own, through pinned memory.

From pageable memory CUDA copies in the order of the stream that computes, so a pack on its way would hold decoding up.
Two pinned blocks take turns: one is filled while the other is sent.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.cudart import HOST_TO_DEVICE, Handle, Runtime
from modularbase_core.device.tensor import Tensor

BLOCK_BYTES: Final = 8 << 20
"""Of each pinned block: large enough for the bus, small enough to be had at once."""

Bytes = NDArray[np.uint8]


class _Block:
    """Pinned memory, and the event after which it may be filled again."""

    def __init__(self, runtime: Runtime, size_bytes: int) -> None:
        self.address = runtime.pinned(size_bytes)
        self.event: Handle = runtime.new_event()
        self.bytes: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(self.address))


class Uploads:
    """The way to a GPU for large values, from any thread. Nothing is allocated before it is first used."""

    def __init__(self, runtime: Runtime, block_bytes: int = BLOCK_BYTES) -> None:
        self._runtime, self._block_bytes = runtime, block_bytes
        self._stream: Handle = 0
        self._blocks: list[_Block] = []
        self._lock = Lock()

    def send(self, values: Iterable[tuple[Tensor, Bytes]]) -> None:
        """Copy bytes to the beginnings of tensors; return when they are there.

        What was given to the GPU before is over by then, so tensors may be written that it still reads.
        """
        with self._lock:
            self._prepare()
            self._runtime.synchronise(0)
            number, filled, sent = 0, 0, 0
            for tensor, whole in values:
                first = 0
                while first < whole.size:
                    if filled == self._block_bytes:
                        number, filled = self._turn(number)
                    block = self._blocks[number]
                    count = min(whole.size - first, self._block_bytes - filled)
                    block.bytes[filled : filled + count] = whole[first : first + count]
                    target, source = tensor.address + first, block.address + filled
                    self._runtime.copy(target, source, count, HOST_TO_DEVICE, self._stream)
                    first, filled, sent = first + count, filled + count, sent + count
            if sent:
                self._runtime.synchronise(self._stream)

    def _turn(self, number: int) -> tuple[int, int]:
        """Leave a block to be sent; return the next one's number once that is free, and how full it is."""
        self._runtime.record(self._blocks[number].event, self._stream)
        number = (number + 1) % len(self._blocks)
        self._runtime.wait(self._blocks[number].event)
        return number, 0

    def _prepare(self) -> None:
        if not self._blocks:
            self._stream = self._runtime.new_stream()
            self._blocks = [_Block(self._runtime, self._block_bytes) for _ in range(2)]
