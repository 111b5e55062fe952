"""Whole networks that a recipe only looks at, of runs, folders or installed packs: an old base, a teacher."""

from __future__ import annotations

from pathlib import Path

from modularbase_core.errors import ArchitectureError, ConfigError, DataError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.packs.resolve import check_fetched
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture, architecture_from_dict
from modularbase_core.train.checkpoints import load_weights, part_of
from modularbase_core.train.installed import Installed, checkpoint_of, companion, load_network, named_pack
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.record import read_record


def base_called(
    told: str, word: str, recipe: Recipe, runs: Path, installed: Installed
) -> tuple[Base, InstalledPack | None]:
    """Load the base called `word`, not to learn, and tell which pack that is; None of a run.

    told: who names it, for errors. A run's shape is what it recorded, or else the recipe's own. Raises DataError.
    """
    checkpoint = checkpoint_of(runs, word)
    if not checkpoint.exists():
        one = named_pack(told, word, ("base",), recipe, runs, installed)
        return read_base(one), one
    shape = _recorded(checkpoint, "architecture") or recipe.architecture
    if not isinstance(shape, BaseArchitecture):
        raise ConfigError(f"{told} is the run {word!r}, whose shape is not recorded; give its [architecture]")
    base = Base(shape)
    load_weights(base, part_of(checkpoint, "base."), checkpoint)
    return base.eval().requires_grad_(False), None


def pack_called(told: str, word: str, recipe: Recipe, runs: Path, installed: Installed) -> Pack:
    """Load the pack called `word`, or of a run the pack or trunk that it trained, not to learn. Raises DataError."""
    checkpoint = checkpoint_of(runs, word)
    if not checkpoint.exists():
        return read_pack(named_pack(told, word, ("system", "domain"), recipe, runs, installed))
    shape = _recorded(checkpoint, "pack") or recipe.pack
    if not isinstance(shape, PackArchitecture):
        raise ConfigError(f"{told} is the run {word!r}, whose shape is not recorded; give its [pack]")
    pack = Pack(shape)
    load_weights(pack, part_of(checkpoint, "pack."), checkpoint)
    return pack.eval().requires_grad_(False)


def chat_beside(told: str, word: str, recipe: Recipe, runs: Path, installed: Installed) -> Pack:
    """Load the general chat that goes with the base called `word`, of a run its trunk.

    Raises DataError and PackError when there is none.
    """
    if checkpoint_of(runs, word).exists():
        return pack_called(told, word, recipe, runs, installed)
    return read_pack(companion(named_pack(told, word, ("base",), recipe, runs, installed), "system", installed))


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


def _recorded(checkpoint: Path, key: str) -> object:
    """Return the shape that a run recorded of its base or pack; None where it recorded none."""
    value = read_record(checkpoint).get("recipe", {}).get(key)
    try:
        return architecture_from_dict(value) if isinstance(value, dict) else None
    except ArchitectureError:
        return None
