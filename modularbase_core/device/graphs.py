"""Portable graphs: which of a pack's files fits a build, and making those that a pack is to bring.

A graph is what torch gives the compiler, ahead; it fits one architecture, kind of target, dtype and precision, one
release of TVM, and the very sources that it was made by. Its name is a digest of them all, so none is used too long.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from modularbase_core.device.artefact import (
    Build,
    Progress,
    compiler_directory,
    digest_sources,
    kernel_precisions,
    plan_build,
    python_files,
    run_compiler,
    tvm_version,
)
from modularbase_core.device.target import cpu_target, cuda_target
from modularbase_core.errors import TORCH_REMEDY, ArtefactError
from modularbase_core.sdk.architecture import Architecture, architecture_to_dict
from modularbase_core.sdk.pack import GRAPH_SUFFIX

_CORE: Final = ("device/metadata.py", "sdk/architecture.py", "sdk/parameters.py", "sdk/precision.py")
_COMPILER: Final = (
    *("converters.py", "export.py", "limits.py", "nodes.py", "portable.py", "requests.py"),
    *("kernels/__init__.py", "kernels/workspace.py"),
)


def graph_name(build: Build) -> str:
    """Return the name of the file that holds the graph of `build`."""
    parts = {
        "architecture": architecture_to_dict(build.architecture),
        "target": build.target.name,
        "dtype": build.dtype,
        "precision": build.precision,
        "tvm": tvm_version().split(".")[:2],  # what mends a release reads the same modules
        "sources": graph_sources(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32] + GRAPH_SUFFIX


def find_graph(build: Build) -> Path | None:
    """Return a file that fits `build`, of the folders that it names; None where there is none."""
    name = graph_name(build)
    return next((folder / name for folder in build.graphs if (folder / name).is_file()), None)


def shipped_builds(architecture: Architecture) -> list[Build]:
    """List what a pack's graphs are for: every precision that a CPU and a GPU have kernels for."""
    kind = architecture.kind
    return [
        plan_build(architecture, target, {kind: precision})
        for target in (cpu_target(), cuda_target())
        for precision in (("float32",) if kind == "router" else kernel_precisions(target))
    ]


def missing_graphs(folder: Path, architecture: Architecture) -> list[Build]:
    """List those of `shipped_builds` that `folder` has no graph for."""
    builds = (replace(build, graphs=(folder,)) for build in shipped_builds(architecture))
    return [build for build in builds if find_graph(build) is None]


def write_graphs(folders: Mapping[Path, Architecture], progress: Progress | None = None) -> None:
    """Make the graphs of networks that lack some, and remove what no longer fits, in each network's folder.

    Raises ArtefactError where torch is not installed, or a graph cannot be made or written.
    """
    missing = {
        folder / graph_name(build): replace(build, graphs=())
        for folder, architecture in folders.items()
        for build in missing_graphs(folder, architecture)
    }
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        if missing:
            if importlib.util.find_spec("torch") is None:
                raise ArtefactError(f"a network's graph is made with torch, which is not installed; {TORCH_REMEDY}")
            distinct = {path.name: build for path, build in missing.items()}
            run_compiler(list(distinct.values()), Path(scratch), progress, "--graphs")
        try:
            for path in missing:
                path.parent.mkdir(exist_ok=True)
                shutil.copyfile(Path(scratch, path.name), path)
            for folder, architecture in folders.items():
                fitting = {graph_name(build) for build in shipped_builds(architecture)}
                for path in folder.glob(f"*{GRAPH_SUFFIX}"):
                    if path.name not in fitting:
                        path.unlink()
        except OSError as error:
            raise ArtefactError(f"graphs cannot be written ({error}); check the folder and the free space") from error


@lru_cache(maxsize=1)
def graph_sources() -> str:
    """Hash the sources that decide what a graph is: the networks, and the part of the compiler that imports them."""
    core = Path(__file__).parents[1]
    sources = [*(core / name for name in _CORE), *(compiler_directory() / name for name in _COMPILER)]
    return digest_sources([*sources, *python_files(core / "graph")])
