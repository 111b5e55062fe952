"""A complete set of packs with tiny random networks, written as a trainer would write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from modularbase_core.device.weights import write_weights
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.sdk.architecture import (
    Architecture,
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
    Window,
)
from modularbase_core.sdk.manifest import ROUTING_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Manifest, write_manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.parameters import parameter_shapes

BLOCKS = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=96)
WINDOW = Window(trained_tokens=128, block_tokens=32, recent_tokens=48, sink_tokens=16)
BASE = BaseArchitecture(blocks=BLOCKS, vocabulary_size=8192, understanding_layers=1, fusion_layers=1, window=WINDOW)
PACK = PackArchitecture(base_hidden_size=64, blocks=BLOCKS, layers=1, window=WINDOW)
ROUTER = RouterArchitecture(base_hidden_size=64, width=32, key_size=16, heads=2, vocabulary_size=8192)

TOKENIZER = Path(__file__).parents[1] / "plugins_example/modularbase-nano/modularbase_nano/base" / TOKENIZER_FILE


def manifest(id: str, type: str, architecture: Architecture, **more: object) -> Manifest:
    """Describe a pack of the tiny set."""
    if type != "base":
        more = {"base": "tiny-base", "base_compatibility": ("1.0",), **more}
    return Manifest(id=id, name=id.title(), version="1.0.0", type=type, architecture=architecture, **more)


def write_pack(
    directory: Path, described: Manifest, seed: int = 0, deviation: float = 0.05, form: str = "int8"
) -> Path:
    """Write random weights, routing keys, tokenizer and manifest of one pack; return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shapes = parameter_shapes(described.network)
    tensors = {name: random.normal(0, deviation, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in tensors:
        if "norm" in name:
            tensors[name][:] = 1.0
    write_weights(directory / WEIGHTS_FILE, tensors, form=form)
    if described.type in ("system", "domain"):
        keys = random.normal(size=(2, ROUTER.key_size)).astype(np.float32)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        one = np.ones(1, np.float32)
        write_weights(directory / ROUTING_FILE, {"keys": keys, "scale": 8 * one, "bias": -4 * one}, form="fp32")
        (directory / "examples.json").write_text(json.dumps([{"prompt": "hi", "response": "hello"}]))
    if described.type == "router":
        rows = random.normal(size=(24, described.network.key_size)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        write_weights(directory / ROUTING_FILE, {"background": rows[:8], "others": rows[8:]}, form="fp32")
    if described.type == "base":
        (directory / TOKENIZER_FILE).parent.mkdir(exist_ok=True)
        shutil.copy(TOKENIZER, directory / TOKENIZER_FILE)
    write_manifest(directory, described)
    return directory


def catalog_of(directories: dict[str, Path]) -> Catalog:
    """List pack directories as if a distribution had brought them."""
    packs = [Pack(directory) for directory in directories.values()]
    return Catalog(tuple(InstalledPack(pack, pack.manifest, "tiny") for pack in packs))


def write_tiny_set(root: Path) -> dict[str, Path]:
    """Write base, router, general chat and a Python pack; return their directories by id."""
    packs = (
        manifest("tiny-base", "base", BASE),
        manifest("tiny-router", "router", ROUTER),
        manifest("general_chat", "system", PACK, aliases=("chat",)),
        manifest("python_code", "domain", PACK, aliases=("python",), keywords=("python", "代码")),
    )
    return {one.id: write_pack(root / one.id, one, seed) for seed, one in enumerate(packs)}
