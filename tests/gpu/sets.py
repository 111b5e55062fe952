"""The sets of packs that are checked: the shipped one, one of the 4 GB preset's shapes, and a tiny one for a trial.

Decides their networks and where their directories come from. Weights of the second are random, and made where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tiny_packs

from modularbase_core.device.artefact import Build, plan_build
from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import (
    Architecture,
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
    Window,
    architecture_key,
)
from modularbase_core.sdk.manifest import Manifest

ROOT: Final = Path(__file__).parents[2]

PRECISIONS: Final = ("float16", "int8", "int4")
"""What a GPU is checked in, as far as it has kernels."""

_BLOCKS = Blocks(hidden_size=1024, heads=16, kv_heads=4, head_size=64, ffn_size=4096)
_WINDOW = Window(trained_tokens=2048, block_tokens=256, recent_tokens=1008, sink_tokens=16)
_LARGE: Final[dict[str, tuple[str, Architecture]]] = {
    "large-base": (
        "base",
        BaseArchitecture(
            blocks=_BLOCKS,
            vocabulary_size=65536,
            understanding_layers=6,
            fusion_layers=2,
            tied_embedding=False,
            window=_WINDOW,
        ),
    ),
    "large-router": ("router", RouterArchitecture(base_hidden_size=1024, width=1024, key_size=16, heads=4)),
    "general_chat": ("system", PackArchitecture(base_hidden_size=1024, blocks=_BLOCKS, layers=8, window=_WINDOW)),
    "python_code": ("domain", PackArchitecture(base_hidden_size=1024, blocks=_BLOCKS, layers=8, window=_WINDOW)),
    "legal": ("domain", PackArchitecture(base_hidden_size=1024, blocks=_BLOCKS, layers=8, window=_WINDOW)),
    "medical": ("domain", PackArchitecture(base_hidden_size=1024, blocks=_BLOCKS, layers=8, window=_WINDOW)),
}
"""256 million parameters of a base (half of the preset's layers), and 126 million of each pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSet:
    """Packs to run. network: of the packs by id; make: writes what is missing into a folder; returns the directories.

    prompt: tokens of a prefill that is timed.
    """

    name: str
    networks: Mapping[str, Architecture]
    make: Callable[[Path], dict[str, Path]]
    prompt: int = 512

    @property
    def base(self) -> str:
        """The id of its base."""
        return next(name for name, one in self.networks.items() if one.kind == "base")

    @property
    def packs(self) -> list[str]:
        """The ids of those that answer, general chat first."""
        named = [name for name, one in self.networks.items() if one.kind == "pack"]
        return sorted(named, key=lambda name: name != "general_chat")


def nano() -> PackSet:
    """Return the shipped packs, general chat and three others."""
    wanted = ("nano-base", "nano-router", "general_chat", "python_code", "legal", "medical")
    found = {path.parent.name: path.parent for path in ROOT.glob("plugins_example/*/*/*/manifest.json")}
    names = {"nano-base": "base", "nano-router": "router"}
    directories = {name: found[names.get(name, name)] for name in wanted}
    networks = {name: Manifest.read(path / "manifest.json").network for name, path in directories.items()}
    return PackSet(name="nano", networks=networks, make=lambda folder: directories)


def large() -> PackSet:
    """Return a set of the 4 GB preset's shapes."""
    return PackSet(name="4gb", networks={name: one for name, (_, one) in _LARGE.items()}, make=_write_large)


def tiny() -> PackSet:
    """Return a set that any machine compiles in seconds."""
    networks = {"tiny-base": tiny_packs.BASE, "tiny-router": tiny_packs.ROUTER}
    networks |= {"general_chat": tiny_packs.PACK, "python_code": tiny_packs.PACK}
    return PackSet(name="tiny", networks=networks, make=tiny_packs.write_tiny_set, prompt=64)


SETS: Final[dict[str, Callable[[], PackSet]]] = {"nano": nano, "4gb": large, "tiny": tiny}


def builds_of(one: PackSet, target: Target, precision: str) -> list[Build] | str:
    """List what a set needs compiled, or say in a sentence why it cannot be in this precision."""
    distinct = {architecture_key(network): network for network in one.networks.values()}
    wanted = dict.fromkeys(("base", "pack"), precision)
    try:
        return [plan_build(network, target, wanted) for network in distinct.values()]
    except ArtefactError as error:
        return str(error)


def _write_large(folder: Path) -> dict[str, Path]:
    directories = {}
    for seed, (name, (type_, network)) in enumerate(_LARGE.items()):
        directories[name] = folder / name
        if not (directories[name] / "manifest.json").exists():
            described = tiny_packs.manifest(name, type_, network, **({} if type_ == "base" else {"base": "large-base"}))
            tiny_packs.write_pack(directories[name], described, seed, deviation=0.02, form="fp16")
    return directories
