"""Build one artefact: give a graph its kernels, lower, generate code, describe, and rename into place all at once.

What is built lies in a folder beside its place until it is whole, so a reader never sees half of one, and of two
builders of the same artefact the later finds it there and drops its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from modularbase_compiler.cubins import check_cubins
from modularbase_compiler.graphs import graph_of
from modularbase_compiler.kernels import Kernels
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.kernels.cuda import CudaKernels
from modularbase_compiler.limits import call_limits
from modularbase_compiler.pipeline import lower
from modularbase_compiler.requests import with_kernels
from modularbase_compiler.target import gpu_target, host_target
from modularbase_compiler.toolchain import check_linker
from modularbase_core.device.artefact import (
    BUILDING_PREFIX,
    Build,
    building_prefix,
    check_artefact,
    tvm_version,
)
from modularbase_core.device.metadata import META_FILE, ArtefactMeta, ProgramMeta
from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.sdk.files import file_sha256

Step = Callable[[str], None]
"""Called with the name of the phase that begins."""

_ABANDONED_SECONDS = 24 * 60 * 60

PHASES = ("export", "lower", "generate", "write")


def build_artefact(build: Build, folder: Path, step: Step) -> Path:
    """Build into `folder`/<key> and return that path; an artefact that is there and sound is kept.

    Raises ArtefactError when it cannot be compiled or written.
    """
    place = folder / build.key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        scratch = Path(tempfile.mkdtemp(prefix=building_prefix(os.getpid()), dir=folder))
        try:
            scratch.chmod(0o755)
            _build_into(build, scratch, step)
            _publish(scratch, place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ArtefactError(
            f"the artefact cannot be written to {folder} ({error.strerror}); free space there or set "
            "MODULARBASE_CACHE to another folder"
        ) from error
    return place


def _build_into(build: Build, scratch: Path, step: Step) -> None:
    check_linker()
    step("export")
    graph = graph_of(build)
    module = with_kernels(graph.module, _kernels(build))
    step("lower")
    modules, storage = {}, {}
    lowered = {name: lower(module, target) for name, target in _code_targets(build.target).items()}
    step("generate")
    for name, target in _code_targets(build.target).items():
        storage = {program: storage_bytes(lowered[name][program]) for program in graph.programs}
        modules[name] = "module.so" if name == "cpu" else f"module-{name}.so"
        with target:  # where TVM's CUDA compiler looks for the architecture
            executable = relax.build(lowered[name], target, relax_pipeline=None)
        _link(executable, scratch / modules[name])
        if name != "cpu":
            check_cubins(scratch / modules[name], name)
    step("write")
    _write_meta(build, graph.programs, storage, modules, scratch)


def _link(executable: Any, path: Path) -> None:
    try:
        executable.export_library(str(path))
    except RuntimeError as error:  # what TVM raises for whatever stopped the linker, a full disk among them
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise ArtefactError(
            f"{path.name} cannot be linked in {path.parent.parent} ({reason}); free space there and in the "
            "temporary folder, and check that gcc or clang works"
        ) from error


def _code_targets(target: Target) -> dict[str, Any]:
    """Return TVM's target for every module of an artefact: one for the CPU, one for each GPU architecture."""
    if target.name == "cpu":
        return {"cpu": host_target(target)}
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise ArtefactError("TVM has not loaded its CUDA runtime; compile with `python -m modularbase_compiler`")
    return {architecture: gpu_target(target, architecture) for architecture in target.features}


def _write_meta(
    build: Build,
    programs: Mapping[str, ProgramMeta],
    storage: dict[str, list[int]],
    modules: dict[str, str],
    scratch: Path,
) -> None:
    pool: Counter[int] = Counter()  # the VM keeps freed blocks by size and hands them to any program
    for sizes in storage.values():
        pool |= Counter(sizes)
    meta = ArtefactMeta(
        key=build.key,
        architecture=build.architecture,
        target=build.target,
        dtype=build.dtype,
        precision=build.precision,
        tvm=tvm_version(),
        page_tokens=PAGE_TOKENS,
        limits=call_limits(build.architecture),
        workspace_bytes=sum(pool.elements()),
        modules=modules,
        sha256={name: file_sha256(scratch / name) for name in modules.values()},
        programs={name: replace(program, workspace_bytes=sum(storage[name])) for name, program in programs.items()},
    )
    (scratch / META_FILE).write_text(meta.to_json())
    for path in scratch.iterdir():
        _sync(path)
    _sync(scratch)


def storage_bytes(function: Any) -> list[int]:
    """Return the size of every allocation of a lowered function; raises ArtefactError if one is not static."""
    sizes: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.vm.alloc_storage":
            for size in node.args[0].values:
                if not hasattr(size, "value"):
                    raise ArtefactError(f"an allocation of {size} bytes is not static; give its dimensions a bound")
                sizes.append(int(size.value))

    relax.analysis.post_order_visit(function, visit)
    return sizes


def _kernels(build: Build) -> Kernels:
    if build.target.name == "cpu":
        return CpuKernels(build.target.level, build.target.features, build.target.vendor)
    return CudaKernels(build.dtype)


def _publish(scratch: Path, place: Path) -> None:
    """Move a whole artefact to its place, unless another builder was first; replace what is not sound."""
    for _ in range(3):
        try:
            scratch.rename(place)
        except OSError:
            if not place.exists():
                raise
        else:
            _sync(place.parent)
            return
        with suppress(ArtefactError):
            check_artefact(place)
            return
        grave = Path(tempfile.mkdtemp(prefix=BUILDING_PREFIX, dir=place.parent))
        with suppress(OSError):
            place.rename(grave / "corrupt")
        shutil.rmtree(grave, ignore_errors=True)
    raise ArtefactError(f"{place} is in the way and cannot be replaced; remove it")


def _sweep(folder: Path) -> None:
    """Remove what builders that were killed left behind, a day later."""
    for path in folder.glob(f"{BUILDING_PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
