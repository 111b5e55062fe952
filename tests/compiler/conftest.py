"""A tiny compiled set, made once for a session, and how to call it against the definition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm  # noqa: F401  # whole, before `device.executable` would import its runtime alone
from modularbase_compiler.build import build_artefact

from modularbase_core.device.artefact import Build
from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.layouts import PlacedWeights
from modularbase_core.device.target import cpu_target
from modularbase_core.graph.programs import programs
from modularbase_core.graph.quantised import scale_name
from modularbase_core.sdk.architecture import (
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
    Window,
)
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.precision import quantised_bits

WINDOW = Window(trained_tokens=256, block_tokens=64, recent_tokens=112, sink_tokens=16)
BLOCKS = Blocks(hidden_size=64, heads=4, kv_heads=2, head_size=32, ffn_size=96, qkv_bias=True)
TINY = {
    "base": BaseArchitecture(
        blocks=BLOCKS, vocabulary_size=150, understanding_layers=2, fusion_layers=1, window=WINDOW
    ),
    "pack": PackArchitecture(
        base_hidden_size=64,
        blocks=Blocks(hidden_size=48, heads=3, kv_heads=1, head_size=64, ffn_size=80, activation="geglu"),
        layers=1,
        window=WINDOW,
    ),
    "mixture": PackArchitecture(
        base_hidden_size=64,
        blocks=Blocks(hidden_size=64, heads=2, kv_heads=2, head_size=32, ffn_size=32, experts=4, activation="gelu"),
        layers=1,
        window=WINDOW,
    ),
    "gelu": PackArchitecture(
        base_hidden_size=64,
        blocks=Blocks(hidden_size=64, heads=2, kv_heads=2, head_size=32, ffn_size=48, activation="gelu"),
        layers=1,
        window=WINDOW,
        head_rank=8,
        vocabulary_size=150,
    ),
    "router": RouterArchitecture(base_hidden_size=64, width=40, key_size=24),
    "lexicon": RouterArchitecture(base_hidden_size=64, width=40, key_size=24, heads=4, vocabulary_size=150),
}


@dataclass(frozen=True)
class Compiled:
    """A program beside its definition, with the same weights."""

    name: str
    definition: torch.nn.Module
    inputs: tuple
    bound: object
    device: Device

    def __call__(self, **values):
        """Run the compiled program; return results as `eager` does."""
        tensors = [self.device.put(np.asarray(values[item.name])) for item in self.inputs]
        first = self.bound(*tensors).numpy().copy()
        return [first, *(t.numpy().copy() for t, item in zip(tensors, self.inputs, strict=True) if item.updated)]

    def eager(self, **values):
        """Run the definition; updated inputs come back as results."""
        with torch.no_grad():
            out = self.definition(*(torch.from_numpy(np.array(values[item.name])) for item in self.inputs))
        return [item.numpy() for item in (out if isinstance(out, tuple) else (out,))]


@pytest.fixture(scope="package", autouse=True)
def one_torch_thread():
    """Keep torch's spinning threads off TVM's: the references here are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def device():
    return Device(threads=2)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artefacts")
    return {name: built(name, "float32", folder) for name in TINY}


@pytest.fixture(scope="session")
def compiled(artefacts, device) -> dict[str, Compiled]:
    torch.manual_seed(3)
    found = {}
    for name, path in artefacts.items():
        for program in bound(name, "float32", path, device):
            label = program.name if name in ("base", "pack", "router") else f"{program.name}_{name}"
            found[label] = program
    return found


def built(name: str, precision: str, folder: Path) -> Path:
    """Compile one of the tiny networks."""
    build = Build(architecture=TINY[name], target=cpu_target(), dtype="float32", precision=precision)
    return build_artefact(build, folder, lambda phase: None)


def bound(name: str, precision: str, path: Path, device: Device) -> list[Compiled]:
    """Bind the programs of an artefact, and their definitions, to the same random weights."""
    executable = Executable.load(path, device)
    weights = PlacedWeights(executable, device)
    values = {key: torch.randn(shape) * 0.2 for key, shape in parameter_shapes(TINY[name]).items()}
    if precision != "float32":  # what kernels read as float16 is told to the definition as well
        values = {key: value.half().float() if value.ndim > 1 else value for key, value in values.items()}
    weights.fill({key: value.numpy() for key, value in values.items()})
    all_programs = programs(TINY[name], precision)
    for program in all_programs:
        fill(program.module, values, quantised_bits(precision))
    return [
        Compiled(program.name, program.module.eval(), program.inputs, weights.bind(program.name), device)
        for program in all_programs
    ]


def fill(module: torch.nn.Module, values: dict[str, torch.Tensor], bits: int) -> None:
    """Give a program's definition its weights, quantised where it holds integers."""
    for key, parameter in module.named_parameters():
        short = key.removeprefix("base.").removeprefix("pack.")
        if parameter.dtype == torch.int8:
            whole, scale = quantise_groups(values[short].numpy(), bits)
            parameter.copy_(torch.from_numpy(whole))
            module.get_parameter(scale_name(key)).copy_(torch.from_numpy(scale))
        elif short in values:
            parameter.data.copy_(values[short])
