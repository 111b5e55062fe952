"""TVM's description of a target, from ours. Never `native`, which TVM silently takes for generic SSE2."""

from __future__ import annotations

from typing import Any

import tvm

from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError

_TRIPLES = {"linux": "{}-unknown-linux-gnu", "darwin": "{}-apple-darwin", "windows": "{}-pc-windows-msvc"}
_GPU = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}


def host_target(target: Target) -> Any:
    """Return the LLVM target of the processor that runs or drives the programs.

    Raises ArtefactError for a system that TVM's LLVM is not asked to serve.
    """
    if target.system not in _TRIPLES:
        raise ArtefactError(f"no code can be made for {target.system!r}; use one of {', '.join(_TRIPLES)}")
    description: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": _TRIPLES[target.system].format(target.machine),
        "mcpu": target.level,
    }
    if target.name == "cpu" and target.features:
        description["mattr"] = [f"+{feature}" for feature in target.features]
    return tvm.target.Target(description)


def gpu_target(target: Target, architecture: str) -> Any:
    """Return the CUDA target of one architecture such as "sm_86", with its host."""
    return tvm.target.Target({"kind": "cuda", "arch": architecture, **_GPU}, host=host_target(target))
