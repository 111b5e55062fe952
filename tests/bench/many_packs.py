"""Packs to measure with, beside the nano set: shipped ones under other ids, and random ones of a given size."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from modularbase_core.device.weights import read_weights, write_weights
from modularbase_core.packs.catalog import Catalog, InstalledPack, discover
from modularbase_core.sdk.architecture import Blocks, PackArchitecture
from modularbase_core.sdk.manifest import MANIFEST_FILE, ROUTING_FILE, WEIGHTS_FILE, Manifest, write_manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.parameters import parameter_shapes


def nano_set() -> Catalog:
    """List the shipped base, router and general chat alone."""
    return Catalog(tuple(one for one in discover().packs if one.manifest.type in ("base", "router", "system")))


def with_packs(catalog: Catalog, directories: list[Path]) -> Catalog:
    """Add packs to a catalogue as if a distribution had brought them."""
    packs = [Pack(directory) for directory in directories]
    return replace(catalog, packs=(*catalog.packs, *(InstalledPack(one, one.manifest, "bench") for one in packs)))


def copy_of(source: Pack, directory: Path, pack_id: str, seed: int) -> Path:
    """Write a copy of a pack under another id, its weights perturbed by 1 %, so that it answers in its own way."""
    random = np.random.default_rng(seed)
    weights = read_weights(source.weights, source.manifest.network)
    for values in weights.values():
        values *= 1 + 0.01 * random.standard_normal(values.shape, np.float32)
    return _written(directory, _manifest(source.manifest, pack_id, source.manifest.network), weights)


def random_pack(like: Pack, directory: Path, pack_id: str, architecture: PackArchitecture, seed: int) -> Path:
    """Write a pack of random weights; one that is there already is kept."""
    if (directory / MANIFEST_FILE).exists():
        return directory
    random = np.random.default_rng(seed)
    shapes = parameter_shapes(architecture)
    weights = {name: 0.02 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return _written(directory, _manifest(like.manifest, pack_id, architecture), weights)


def large(like: PackArchitecture, layers: int) -> PackArchitecture:
    """Describe a network of about 47 MB of float32 a layer, for the same base."""
    blocks = Blocks(hidden_size=1024, heads=16, kv_heads=8, head_size=64, ffn_size=2816)
    return replace(like, blocks=blocks, layers=layers)


def _manifest(like: Manifest, pack_id: str, architecture: object) -> Manifest:
    return replace(
        like, id=pack_id, name=pack_id, type="domain", aliases=(), dependencies=(), architecture=architecture
    )


def _written(directory: Path, manifest: Manifest, weights: dict[str, np.ndarray]) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_weights(directory / WEIGHTS_FILE, weights)
    assert not (directory / ROUTING_FILE).exists()
    write_manifest(directory, manifest)
    return directory
