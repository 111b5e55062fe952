"""Whole networks that a recipe only looks at, from runs, folders or installed packs: an old base, a teacher."""

from __future__ import annotations

from pathlib import Path

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.packs.resolve import check_fetched
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.train.checkpoints import load_weights, part_of
from modularbase_core.train.installed import Installed, checkpoint_of, companion, find_pack, load_network
from modularbase_core.train.recipe import Recipe


def whole_base(recipe: Recipe, key: str, runs: Path, installed: Installed) -> Base:
    """Load the base that the recipe's `key` names; a run's must have the recipe's own architecture."""
    checkpoint = checkpoint_of(runs, getattr(recipe, key))
    if checkpoint.exists():
        if not isinstance(recipe.architecture, BaseArchitecture):
            raise ConfigError(f"recipe {recipe.name!r}: give the [architecture] of the run {getattr(recipe, key)!r}")
        base = Base(recipe.architecture)
        load_weights(base, part_of(checkpoint, "base."), checkpoint)
        return base.eval().requires_grad_(False)
    return read_base(find_pack(recipe, key, runs, installed))


def trunk_of(recipe: Recipe, key: str, runs: Path, installed: Installed) -> Pack:
    """Load the general chat that goes with the base that the recipe's `key` names, or the trunk of that run.

    Raises DataError and PackError when there is none, or one of another shape.
    """
    checkpoint = checkpoint_of(runs, getattr(recipe, key))
    if not checkpoint.exists():
        return read_pack(companion(find_pack(recipe, key, runs, installed), "system", installed))
    assert isinstance(recipe.pack, PackArchitecture)
    pack = Pack(recipe.pack)
    load_weights(pack, part_of(checkpoint, "pack."), checkpoint)
    return pack.eval().requires_grad_(False)


def read_base(one: InstalledPack) -> Base:
    """Load the network of a base, in float32, not to learn."""
    check_fetched(one)
    network = load_network(one.pack)
    if not isinstance(network, Base):
        raise DataError(f"{one.id} is no base; name one")
    return network


def read_pack(one: InstalledPack) -> Pack:
    """Load the network of a pack, in float32, not to learn."""
    check_fetched(one)
    network = load_network(one.pack)
    if not isinstance(network, Pack):
        raise DataError(f"{one.id} is no pack that answers; name one of type system or domain")
    return network
