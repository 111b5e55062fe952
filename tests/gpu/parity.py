"""Compare every program of compiled artefacts with its definition, on several calls of different raggedness.

The reference is eager torch on the CPU in float32, over the same weights as they are rounded or quantised, and the
same inputs. An error is the largest relative L2 error of a call's results, updated pages among them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import PlacedWeights, planned_bytes
from modularbase_core.graph.programs import FLOAT, programs
from modularbase_core.graph.quantised import scale_name
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.precision import quantised_bits

BOUNDS: Final = {"float32": 1e-4, "float16": 2e-3, "int8": 2e-2, "int4": 2e-2}
"""Largest error by the precision of weights; those of integers leave open whether activations are rounded too."""
PAGE = 16
# (new rows, rows before) of each sequence of a call
CALLS = {
    "prefill": [(256, 0)],
    "ragged": [(100, 3), (1, 37), (30, 0)],
    "decode": [(1, 200), (1, 0), (1, 511)],
    "one": [(1, 300)],
    "short": [(20, 0), (1, 9)],
}


def check_artefact(path: Path, device: Device) -> dict[str, Any]:
    """Run every program of an artefact on every call; return its errors, milliseconds and planned bytes."""
    executable = Executable.load(path, device)
    meta = executable.meta
    definitions = programs(meta.architecture, meta.precision)
    values = random_weights(meta.architecture)
    weights = PlacedWeights(executable, device)
    weights.fill(values)
    bound = max(BOUNDS[meta.precision], BOUNDS[meta.dtype])
    calls = []
    for program in definitions:
        fill(program.module, values, meta.precision)
        compiled = weights.bind(program.name)
        for label, spans in CALLS.items():
            if max(length + before for length, before in spans) > PAGE * meta.limits.get("M", 1 << 20):
                continue
            given = make_inputs(program, spans, meta.limits.get("M", 1), meta.dtype)
            tensors = [device.put(item) for item in given]
            started = time.perf_counter()
            results = [compiled(*tensors), *(t for t, i in zip(tensors, program.inputs, strict=True) if i.updated)]
            device.synchronise()
            milliseconds = 1e3 * (time.perf_counter() - started)
            error = compare([item.numpy() for item in results], reference(program, given))
            calls.append({"program": program.name, "call": label, "error": error, "first_ms": milliseconds})
    worst = max(item["error"] for item in calls)
    return {
        "kind": meta.architecture.kind,
        "precision": meta.precision,
        "calls": calls,
        "worst": worst,
        "bound": bound,
        "ok": worst <= bound,
        "planned_bytes": planned_bytes(meta) + meta.workspace_bytes,
    }


def random_weights(architecture: Any) -> dict[str, np.ndarray]:
    """Draw weights whose products keep the size of what they are given; float16 holds each exactly."""
    rng, values = np.random.default_rng(0), {}
    for name, shape in parameter_shapes(architecture).items():
        drawn = rng.standard_normal(shape, np.float32)
        drawn *= shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        values[name] = (1 + drawn if "norm" in name else drawn).astype(np.float16).astype(np.float32)
    return values


def fill(module: torch.nn.Module, values: dict[str, np.ndarray], precision: str) -> None:
    """Give a program's definition its weights, quantised where it holds integers."""
    for key, parameter in module.named_parameters():
        short = key.removeprefix("base.").removeprefix("pack.")
        if parameter.dtype == torch.int8:
            whole, scale = quantise_groups(values[short], quantised_bits(precision))
            parameter.data.copy_(torch.from_numpy(whole))
            module.get_parameter(scale_name(key)).data.copy_(torch.from_numpy(scale))
        elif short in values:
            parameter.data.copy_(torch.from_numpy(values[short]))


def make_inputs(program: Any, spans: list[tuple[int, int]], listed: int, dtype: str) -> list[np.ndarray]:
    """Draw the inputs of a call; pages are scattered over the pool."""
    rng = np.random.default_rng(0)
    lengths, context = (np.array(item, np.int32) for item in zip(*spans, strict=True))
    rows = int(lengths.sum())
    pool = max(256, len(spans) * listed)
    visible = rng.permutation(pool)[: len(spans) * listed].reshape(len(spans), listed).astype(np.int32)
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
    sizes = {"T": rows, "P": pool, "B": len(spans)}
    return [
        given[item.name]
        if item.name in given
        else rng.standard_normal([sizes.get(size, size) for size in item.shape]).astype(dtype)
        for item in program.inputs
    ]


def reference(program: Any, given: list[np.ndarray]) -> list[np.ndarray]:
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
