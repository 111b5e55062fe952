"""Run compiled programs: the only place of the core that imports TVM, and only when an artefact is loaded.

Decides how TVM is imported (runtime only, no torch, a thread for each physical core) and how tensors are laid
out (64-byte aligned; on the CPU numpy and TVM see the same bytes). Which program to call is left to others.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.metadata import ArtefactMeta, ProgramMeta, read_meta
from modularbase_core.device.target import physical_cores
from modularbase_core.errors import ArtefactError

ALIGNMENT: Final = 64
"""Bytes that tensors are aligned to: a cache line, and what TVM asks of memory that it did not allocate."""

Array = NDArray[Any]  # Any: tensors are of several dtypes, told at run time


@dataclass(frozen=True, slots=True)
class Tensor:
    """Memory of a device that programs read and write. `handle` is TVM's, `host` numpy's view (CPU only)."""

    shape: tuple[int, ...]
    dtype: str
    handle: Any  # tvm.runtime.Tensor, which is not imported here and has no types
    host: Array | None

    def numpy(self) -> Array:
        """Return a view on the CPU, a copy from a GPU."""
        if self.host is not None:
            return self.host
        copied: Array = self.handle.numpy()
        return copied

    def write(self, values: Array) -> None:
        """Copy `values`, of the same shape, into the tensor."""
        if self.host is not None:
            self.host[...] = values
        else:
            self.handle.copyfrom(np.ascontiguousarray(values, dtype=self.dtype))

    def read_rows(self, rows: Sequence[int]) -> Array:
        """Copy some of the first axis to the CPU: [len(rows), ...]."""
        if self.host is not None:
            copied: Array = self.host[list(rows)]
            return copied
        return np.concatenate([np.zeros((0, *self.shape[1:]), self.dtype), *(self._row(row).numpy() for row in rows)])

    def write_row(self, row: int, values: Array) -> None:
        """Copy `values` [...] into one of the first axis."""
        if self.host is not None:
            self.host[row] = values
        else:
            self._row(row).copyfrom(np.ascontiguousarray(values[None], dtype=self.dtype))

    def copy_row(self, source: int, target: int) -> None:
        """Copy one of the first axis over another; on a GPU nothing passes through the CPU."""
        if self.host is not None:
            self.host[target] = self.host[source]
        else:
            self._row(target).copyfrom(self._row(source))

    def _row(self, row: int) -> Any:
        shape = (1, *self.shape[1:])
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        return self.handle._create_view(shape, self.dtype, relative_byte_offset=row * size_bytes)


class Device:
    """Where tensors live: "cpu" or "cuda". Makes them; owns none."""

    def __init__(self, name: str = "cpu", index: int = 0, threads: int | None = None) -> None:
        self.name = name
        if name == "cuda":
            _preload_cuda_runtime()
        self._runtime = _import_tvm(threads or physical_cores())
        if name == "cuda":
            _check_cuda(self._runtime)
        self.handle = self._runtime.device(name, index)

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
        tensor = Tensor(shape, dtype, self._runtime.empty(shape, dtype, self.handle), None)
        tensor.write(np.zeros(shape, dtype))
        return tensor

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
        return Tensor(tuple(handle.shape), str(handle.dtype), handle, host)

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        self.handle.sync()


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

    __slots__ = ("_device", "_function", "_parameters", "meta")

    def __init__(self, device: Device, meta: ProgramMeta, function: Any, parameters: tuple[Any, ...]) -> None:
        self.meta = meta
        self._device = device
        self._function = function
        self._parameters = parameters

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run; return the computed tensor. Updated inputs are written in place."""
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


def _preload_cuda_runtime() -> None:
    """Load libcudart from its wheel, where the system has none: TVM's CUDA library is linked against it."""
    for folder in sys.path:
        library = Path(folder, "nvidia", "cu13", "lib", "libcudart.so.13")
        if library.is_file():
            with suppress(OSError):  # then the system's own may serve
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return


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
