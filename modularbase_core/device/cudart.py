"""What TVM's runtime leaves to us of CUDA's: streams, captured graphs, copies that do not wait, pinned memory.

Called through ctypes, so that nothing but the library that TVM itself is linked against is needed. Every failure is a
`CudaError`; what follows from one is decided by the caller.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from modularbase_core.errors import ArtefactError

LIBRARY: Final = "libcudart.so.13"
_PLACES: Final = ("nvidia/cu13/lib", "torch/lib")
HOST_TO_DEVICE: Final = 1
DEVICE_TO_HOST: Final = 2
DEVICE_TO_DEVICE: Final = 3
_NON_BLOCKING: Final = 1  # a stream that waits neither for the default one nor makes it wait
_RELAXED: Final = 2  # other threads, and lazily loaded kernels, may allocate while a stream is captured
_NO_TIMING: Final = 2

Handle = int
"""Address of a stream, graph or event; 0 is the default stream, on which TVM launches."""


class CudaError(Exception):
    """A call of CUDA's runtime failed. Never told to users as it is."""


class Runtime(Protocol):
    """What is asked of CUDA: `CudaRuntime`, or what stands for it where there is no GPU."""

    def new_stream(self) -> Handle:
        """Make a stream that is ordered with no other."""

    def begin_capture(self, stream: Handle) -> None:
        """From here on record what this thread gives to `stream`, and run none of it."""

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded, as a graph that can be launched; raises CudaError where it cannot be."""

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Run a graph."""

    def drop(self, graph: Handle) -> None:
        """Forget a graph, once it has run."""

    def copy(self, target: int, source: int, size_bytes: int, kind: int, stream: Handle) -> None:
        """Copy between addresses; returns when pageable memory has been read, whatever the device does meanwhile."""

    def synchronise(self, stream: Handle) -> None:
        """Wait until a stream has done all that it was given."""

    def pinned(self, size_bytes: int) -> int:
        """Return the address of host memory that is copied from without the CPU; it is never given back."""

    def new_event(self) -> Handle:
        """Make a mark for streams; until it is recorded nobody waits for it."""

    def record(self, event: Handle, stream: Handle) -> None:
        """Put a mark behind what a stream was given so far."""

    def wait(self, event: Handle) -> None:
        """Wait until a stream has come to the mark."""


class CudaRuntime:
    """The real one. Raises ArtefactError where the library cannot be loaded."""

    def __init__(self, library: str = LIBRARY) -> None:
        preload()
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise ArtefactError(f"{library} cannot be loaded ({error}); install the CUDA 13 runtime") from None
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def new_stream(self) -> Handle:
        """Make a stream that is ordered with no other."""
        return self._made("cudaStreamCreateWithFlags", ctypes.c_uint(_NON_BLOCKING))

    def begin_capture(self, stream: Handle) -> None:
        """From here on record what this thread gives to `stream`, and run none of it."""
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(_RELAXED))

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded, as a graph that can be launched; raises CudaError where it cannot be."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cudaGraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            with suppress(CudaError):  # what is launched is the instance; the other is of no more use
                self._call("cudaGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Run a graph."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def drop(self, graph: Handle) -> None:
        """Forget a graph, once it has run."""
        self.synchronise(0)
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph))

    def copy(self, target: int, source: int, size_bytes: int, kind: int, stream: Handle) -> None:
        """Copy between addresses; returns when pageable memory has been read, whatever the device does meanwhile."""
        addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *addresses, ctypes.c_size_t(size_bytes), kind, ctypes.c_void_p(stream))

    def synchronise(self, stream: Handle) -> None:
        """Wait until a stream has done all that it was given."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def pinned(self, size_bytes: int) -> int:
        """Return the address of host memory that is copied from without the CPU; it is never given back."""
        return self._made("cudaMallocHost", ctypes.c_size_t(size_bytes))

    def new_event(self) -> Handle:
        """Make a mark for streams; until it is recorded nobody waits for it."""
        return self._made("cudaEventCreateWithFlags", ctypes.c_uint(_NO_TIMING))

    def record(self, event: Handle, stream: Handle) -> None:
        """Put a mark behind what a stream was given so far."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait(self, event: Handle) -> None:
        """Wait until a stream has come to the mark."""
        self._call("cudaEventSynchronize", ctypes.c_void_p(event))

    def free_bytes(self) -> tuple[int, int]:
        """Return the bytes of the device that nobody has, and all of them."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _made(self, name: str, *arguments: Any) -> Handle:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            self._library.cudaGetLastError()  # else the next call, TVM's perhaps, would report it again
            told = self._library.cudaGetErrorString(status)
            raise CudaError(f"{name}: {told.decode() if told else status}")


def preload() -> None:
    """Load the library from its wheel or torch's, where the system has none: TVM's own is linked against it."""
    for folder in sys.path:
        for place in _PLACES:
            library = Path(folder, place, LIBRARY)
            if library.is_file():
                with suppress(OSError):  # then the system's own may serve
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
                return
