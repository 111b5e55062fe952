"""Compare compiled CUDA programs with the definition on a GPU, and device bytes with the plan.

    python -m modularbase_compiler --target cuda --architecture MANIFEST... --out ARTEFACTS    # anywhere
    python tests/gpu/check_parity.py ARTEFACTS                                                # on the GPU machine

The second needs torch, numpy and TVM's runtime, no compiler. The reference is eager torch in float32 over the same
float16 weights and inputs; the bound is an L2 error of 2e-3 for every result. Exit code 1 if one exceeds it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.layouts import PlacedWeights, planned_bytes
from modularbase_core.graph.programs import FLOAT, programs

BOUND = 2e-3
POOL_PAGES = 256
PAGE = 16
# (new rows, rows before) of each sequence of a call: a prefill, a ragged batch, decoding
CALLS = {"prefill": [(256, 0)], "ragged": [(100, 3), (1, 37), (30, 0)], "decode": [(1, 200), (1, 0), (1, 511)]}


def main() -> int:
    """Check every artefact of a folder; print a line each, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefacts", type=Path, help="folder that holds artefacts by key")
    folder = parser.parse_args().artefacts
    device = Device("cuda")
    print(f"{torch.cuda.get_device_name()}, {device.architecture}, torch {torch.__version__}")
    free, total = torch.cuda.mem_get_info()
    report = [check(path, device) for path in sorted(folder.iterdir()) if (path / "meta.json").is_file()]
    used = free - torch.cuda.mem_get_info()[0]
    planned = sum(item["planned_bytes"] for item in report)
    print(f"device bytes: planned {planned:,}, measured {used:,} of {total:,} (with modules and CUDA's own)")
    worst = max((error for item in report for error in item["errors"].values()), default=float("inf"))
    print(json.dumps({"worst": worst, "planned_bytes": planned, "measured_bytes": used, "artefacts": report}))
    return int(not worst <= BOUND)


def check(path: Path, device: Device) -> dict:
    """Run every program of an artefact on every call; return its errors and bytes."""
    executable = Executable.load(path, device)
    meta = executable.meta
    torch.manual_seed(0)
    definitions = programs(meta.architecture)
    values: dict[str, np.ndarray] = {}
    for program in definitions:
        for name, parameter in program.module.named_parameters():
            short = name.removeprefix("base.").removeprefix("pack.")
            if short not in values:
                values[short] = parameter.detach().half().float().numpy().copy()
            parameter.data = torch.from_numpy(values[short])
    weights = PlacedWeights(executable, device)
    weights.fill(values)
    errors, pages_bytes = {}, 0
    for program in definitions:
        bound = weights.bind(program.name)
        for label, spans in CALLS.items():
            given = make_inputs(program, spans, meta.limits.get("M", 1))
            tensors = [device.put(item) for item in given]
            pages_bytes = max(pages_bytes, sum(item.nbytes for item in given))
            started = time.perf_counter()
            results = [bound(*tensors), *(t for t, i in zip(tensors, program.inputs, strict=True) if i.updated)]
            device.synchronise()
            milliseconds = 1e3 * (time.perf_counter() - started)
            error = compare([item.numpy() for item in results], reference(program, given))
            errors[f"{program.name} {label}"] = error
            print(f"{meta.architecture.kind:6} {program.name:13} {label:8} {error:.1e} {milliseconds:8.2f} ms")
    planned = planned_bytes(meta) + meta.workspace_bytes + pages_bytes
    return {"kind": meta.architecture.kind, "errors": errors, "planned_bytes": int(planned)}


def make_inputs(program, spans, listed: int) -> list[np.ndarray]:
    """Draw the inputs of a call; pages are scattered over the pool."""
    rng = np.random.default_rng(0)
    lengths, context = (np.array(item, np.int32) for item in zip(*spans, strict=True))
    rows = int(lengths.sum())
    visible = rng.permutation(POOL_PAGES)[: len(spans) * listed].reshape(len(spans), listed).astype(np.int32)
    places = [(b, before + i) for b, (length, before) in enumerate(spans) for i in range(length)]
    given = {
        "lengths": lengths,
        "context": context,
        "starts": (np.cumsum(lengths) - lengths).astype(np.int32),
        "visible": visible,
        "slots": np.array([visible[b, p // PAGE] * PAGE + p % PAGE for b, p in places], np.int32)
        if listed * PAGE >= max(length + before for length, before in spans)
        else np.arange(rows, dtype=np.int32),
        "rows": np.arange(0, rows, max(1, rows // 8), dtype=np.int32),
        "tokens": rng.integers(0, 100, rows).astype(np.int32),
    }
    sizes = {"T": rows, "P": POOL_PAGES, "B": len(spans)}
    return [
        given[item.name]
        if item.name in given
        else rng.standard_normal([sizes.get(size, size) for size in item.shape]).astype(np.float16)
        for item in program.inputs
    ]


def reference(program, given: list[np.ndarray]) -> list[np.ndarray]:
    """Run the definition on the CPU in float32."""
    kinds = [np.float32 if item.dtype == FLOAT else np.int32 for item in program.inputs]
    with torch.no_grad():
        out = program.module.eval()(*(torch.from_numpy(g.astype(k)) for g, k in zip(given, kinds, strict=True)))
    return [item.numpy() for item in (out if isinstance(out, tuple) else (out,))]


def compare(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the largest relative L2 error of the results; infinite where one is not finite."""
    errors = [
        float(np.linalg.norm(one.astype(np.float64) - other) / np.linalg.norm(other))
        for one, other in zip(got, expected, strict=True)
    ]
    return max(error if np.isfinite(error) else float("inf") for error in errors)


if __name__ == "__main__":
    sys.exit(main())
