"""Run compiled programs: the only place of the core that imports TVM, and only when an artefact is loaded.

Decides how TVM is imported (runtime only, no torch, a thread for each physical core) and how tensors are laid
out (64-byte aligned; on the CPU numpy and TVM see the same bytes). Which program to call is left to others.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.captured import MOST_ROWS, Graphs, Storages
from modularbase_core.device.cudart import CudaRuntime, preload
from modularbase_core.device.metadata import ArtefactMeta, ProgramMeta, read_meta
from modularbase_core.device.target import physical_cores
from modularbase_core.device.tensor import Array, Tensor
from modularbase_core.device.uploads import Uploads
from modularbase_core.errors import ArtefactError

__all__ = ["ALIGNMENT", "BoundProgram", "Device", "Executable", "Tensor"]

ALIGNMENT: Final = 64
"""Bytes that tensors are aligned to: a cache line, and what TVM asks of memory that it did not allocate."""


class Device:
    """Where tensors live: "cpu" or "cuda". Makes them; owns none. graphs: whether a GPU replays short calls."""

    def __init__(self, name: str = "cpu", index: int = 0, threads: int | None = None, *, graphs: bool = True) -> None:
        self.name = name
        if name == "cuda":
            preload()
        self._runtime = _import_tvm(threads or physical_cores())
        if name == "cuda":
            _check_cuda(self._runtime)
        self.handle = self._runtime.device(name, index)
        self.cuda = CudaRuntime() if name == "cuda" else None
        self._uploads = Uploads(self.cuda) if self.cuda is not None else None
        self.graphs = self._new_graphs() if graphs and self.cuda is not None else None

    @property
    def architecture(self) -> str:
        """Name the code that the device runs: "cpu", or the GPU's architecture such as "sm_86"."""
        return "cpu" if self.name == "cpu" else "sm_" + str(self.handle.compute_version).replace(".", "")

    def tensor(self, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """Allocate zeros. On the CPU, memory that is never written is never resident."""
        shape = tuple(int(size) for size in shape)
        if self.name == "cpu":
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            return self.view(self.host_bytes(size).view(dtype).reshape(shape))
        tensor = Tensor(shape, dtype, self._runtime.empty(shape, dtype, self.handle), None, self.cuda)
        tensor.write(np.zeros(shape, dtype))
        return tensor

    def upload(self, values: Iterable[tuple[Tensor, NDArray[np.uint8]]]) -> None:
        """Copy bytes to tensors; on a GPU beside what it computes. They are there when this returns."""
        if self._uploads is not None:
            self._uploads.send(values)
            return
        for tensor, whole in values:
            tensor.write(whole.view(tensor.dtype).reshape(tensor.shape))

    def forget(self, tensors: Sequence[Tensor]) -> None:
        """Drop what was recorded of calls with these tensors, which are about to be freed."""
        if self.graphs is not None:
            self.graphs.forget([tensor.address for tensor in tensors])

    def host_bytes(self, size_bytes: int) -> NDArray[np.uint8]:
        """Allocate zeros of the CPU's memory, aligned; what is never written is never resident."""
        raw = np.zeros(size_bytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + size_bytes]

    def view(self, host: Array) -> Tensor:
        """Show programs on the CPU an aligned, contiguous array; no copy."""
        return Tensor(host.shape, str(host.dtype), self._runtime.from_dlpack(host), host)

    def put(self, values: Array) -> Tensor:
        """Allocate a tensor of the shape and dtype of `values` and copy them."""
        tensor = self.tensor(values.shape, str(values.dtype))
        tensor.write(values)
        return tensor

    def wrap(self, handle: Any) -> Tensor:
        """View a result of a program as a Tensor; no copy."""
        host = np.from_dlpack(handle) if self.name == "cpu" else None
        return Tensor(tuple(handle.shape), str(handle.dtype), handle, host, self.cuda)

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        self.handle.sync()

    def _new_graphs(self) -> Graphs:
        assert self.cuda is not None
        storages = Storages()
        _lend_storages(storages)
        return Graphs(self.cuda, storages, lambda other: self.tensor(other.shape, other.dtype), self._launching_on)

    @contextmanager
    def _launching_on(self, stream: int) -> Iterator[None]:
        self.handle.set_raw_stream(stream)
        try:
            yield
        finally:
            self.handle.set_raw_stream(0)


class Executable:
    """A loaded artefact: programs to be bound to weights. One may serve any number of weight sets."""

    def __init__(self, meta: ArtefactMeta, device: Device, machine: Any) -> None:
        self.meta = meta
        self.device = device
        # machine: tvm.runtime.vm.VirtualMachine; looked up here, so that binding in another thread never meets a call
        self._functions = {name: machine[name] for name in meta.programs}

    @classmethod
    def load(cls, directory: Path, device: Device) -> Executable:
        """Load the artefact in `directory` for `device`.

        Raises ArtefactError when it is unreadable or holds no code for the device.
        """
        meta = read_meta(directory)
        if meta.target.name != device.name:
            raise ArtefactError(f"{directory} is compiled for {meta.target.name}, the device is {device.name}")
        file = directory / meta.modules[_fitting(meta, device.architecture)]
        try:
            module = importlib.import_module("tvm.runtime").load_module(str(file))
            machine = importlib.import_module("tvm.runtime.vm").VirtualMachine(module, device.handle)
        except Exception as error:  # TVM raises many kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ArtefactError(f"{file} cannot be loaded ({first}); build the artefact again") from error
        return cls(meta, device, machine)

    def bind(self, program: str, parameters: Mapping[str, Tensor]) -> BoundProgram:
        """Join a program with its weights, by name; others in `parameters` are left alone.

        Raises ArtefactError when one is missing or of another shape or dtype than the program takes.
        """
        meta = self.meta.programs[program]
        handles = []
        for wanted in meta.parameters:
            given = parameters.get(wanted.name)
            if given is None:
                raise ArtefactError(f"program {program!r} needs the weight {wanted.name!r}, which is not given")
            if given.shape != wanted.stored_shape or given.dtype != wanted.dtype:
                raise ArtefactError(
                    f"program {program!r} needs {wanted.name!r} as {wanted.dtype} {list(wanted.stored_shape)}, "
                    f"got {given.dtype} {list(given.shape)}"
                )
            handles.append(given.handle)
        return BoundProgram(self.device, meta, self._functions[program], tuple(handles))


class BoundProgram:
    """A program with its weights: call it with its inputs, in the order of `meta.inputs`."""

    __slots__ = ("_addresses", "_device", "_function", "_parameters", "meta")

    def __init__(self, device: Device, meta: ProgramMeta, function: Any, parameters: tuple[Any, ...]) -> None:
        self.meta = meta
        self._device = device
        self._function = function
        self._parameters = parameters
        recorded = parameters if device.graphs is not None else ()
        self._addresses = frozenset(int(handle.data_ptr()) for handle in recorded)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run; return the computed tensor, which on a GPU the same call writes over. Updated inputs change in place."""
        graphs = self._device.graphs
        if graphs is None or inputs[0].shape[0] > MOST_ROWS:
            return self._run(inputs)
        return graphs.run(self._function, inputs, self._addresses, partial(self._run, inputs))

    def _run(self, inputs: Sequence[Tensor]) -> Tensor:
        result = self._function(*[tensor.handle for tensor in inputs], *self._parameters)
        return self._device.wrap(result[0] if self.meta.results > 1 else result)


def _import_tvm(threads: int) -> Any:
    """Import TVM's runtime alone: without the compiler's 259 MB and without torch, which tvm_ffi would import."""
    if "tvm" not in sys.modules:
        os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
        os.environ.setdefault("TVM_NUM_THREADS", str(threads))  # read before the first kernel
        blocked = "torch" not in sys.modules
        if blocked:
            sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` raise ImportError
        try:
            importlib.import_module("tvm")
        except ImportError as error:
            raise ArtefactError(f"TVM cannot be imported ({error}); run `pip install apache-tvm`") from error
        finally:
            if blocked:
                del sys.modules["torch"]
    return importlib.import_module("tvm.runtime")


def _lend_storages(storages: Storages) -> None:
    """Let programs that are loaded from now on allocate through `storages`."""
    name = "vm.builtin.alloc_storage"
    ffi = importlib.import_module("tvm_ffi")
    ffi.register_global_func(name, partial(storages.allocate, ffi.get_global_func(name)), override=True)


def _check_cuda(runtime: Any) -> None:
    if not runtime.device("cuda", 0).exist:
        raise ArtefactError("no CUDA device answers; install an NVIDIA driver (580 or newer) or use device 'cpu'")


def _fitting(meta: ArtefactMeta, architecture: str) -> str:
    """Choose the newest code of the same GPU generation that the device can run (CUDA's binary compatibility)."""
    if architecture == "cpu":
        return "cpu"
    number = int(architecture.removeprefix("sm_"))
    names = {int(name.removeprefix("sm_")): name for name in meta.modules}
    fitting = [have for have in names if have // 10 == number // 10 and have <= number]
    if not fitting:
        raise ArtefactError(f"the artefact holds code for {', '.join(meta.modules)}; this GPU is {architecture}")
    return names[max(fitting)]
