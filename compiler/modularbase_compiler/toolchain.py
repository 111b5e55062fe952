"""What generating code needs on this machine: a linker, and for CUDA a compiler and libraries that TVM can load.

TVM registers CUDA only if libcudart and libcuda load; otherwise it silently puts source text in place of GPU code.
So before `import tvm` the first is loaded from its wheel, and where there is no driver a stub stands for the second.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from modularbase_core.errors import ArtefactError

_DRIVER_SYMBOLS: Final = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_INSTALL: Final = "run `pip install 'modularbase[cuda]'`"


def prepare_cuda(scratch: Path) -> None:
    """Make CUDA code generation possible without a GPU; call it before TVM is imported.

    `scratch` must outlive the build. Raises ArtefactError when NVRTC or its headers are missing.
    """
    home = _wheel_home()
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise ArtefactError(f"compiling for CUDA needs cuda-bindings; {_INSTALL}")
    if not _load("libcudart.so.13"):
        library = home / "lib" / "libcudart.so.13"
        if not _load(str(library)):
            raise ArtefactError(f"compiling for CUDA needs {library}, which does not load; {_INSTALL}")
    if not _load("libcuda.so.1"):
        _load_stub(scratch)
    root = scratch / "cuda"
    for link in (root / "include", root / "targets" / f"{os.uname().machine}-linux" / "include"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(home / "include")
    os.environ["CUDA_PATH"] = str(root)
    os.environ["TVM_CUDA_COMPILE_MODE"] = "nvrtc"


def check_linker() -> str:
    """Return the C compiler that links modules; raises ArtefactError when there is none."""
    for name in ("g++", "gcc", "clang++", "clang", "c++", "cc"):
        if found := shutil.which(name):
            return found
    raise ArtefactError("linking compiled code needs a C compiler; install gcc or clang")


def _wheel_home() -> Path:
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        home = Path(place) / "cu13"
        if (home / "include" / "cuda_fp16.h").is_file():
            return home
    raise ArtefactError(f"compiling for CUDA needs NVRTC and its headers; {_INSTALL}")


def _load(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _load_stub(scratch: Path) -> None:
    library = scratch / "libcuda.so.1"
    source = "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _DRIVER_SYMBOLS)
    command = [check_linker(), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(library)]
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    if done.returncode or not _load(str(library)):
        raise ArtefactError(f"a stub of the CUDA driver cannot be made ({done.stderr.strip() or 'it does not load'})")
