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
from modularbase_core.device.layouts import PlacedWeights
from modularbase_core.device.target import cpu_target
from modularbase_core.graph.programs import programs
from modularbase_core.sdk.architecture import (
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
    Window,
)

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
    target = cpu_target()
    return {
        name: build_artefact(Build(architecture=item, target=target, dtype="float32"), folder, lambda phase: None)
        for name, item in TINY.items()
    }


@pytest.fixture(scope="session")
def compiled(artefacts, device) -> dict[str, Compiled]:
    torch.manual_seed(3)
    found = {}
    for name, path in artefacts.items():
        executable = Executable.load(path, device)
        weights = PlacedWeights(executable, device)
        all_programs = programs(TINY[name])
        values = {}
        for program in all_programs:
            for key, value in program.module.state_dict().items():
                short = key.removeprefix("base.").removeprefix("pack.")
                values.setdefault(short, torch.randn_like(value) * 0.2)
                value.copy_(values[short])
        weights.fill({key: value.numpy() for key, value in values.items()})
        for program in all_programs:
            label = program.name if name in ("base", "pack", "router") else f"{program.name}_{name}"
            found[label] = Compiled(
                program.name, program.module.eval(), program.inputs, weights.bind(program.name), device
            )
    return found
