"""What a stage stands on: networks with the weights of earlier stages' checkpoints, or of installed packs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import Architecture, BaseArchitecture, PackArchitecture
from modularbase_core.train.installed import Installed, checkpoint_of, find_pack, weights_of
from modularbase_core.train.language import Whole
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.saving import read_checkpoint


def build_model(recipe: Recipe, runs: Path, begin: int, installed: Installed = discover) -> Whole:
    """Make the stage's model from the runs or installed packs that it stands on."""
    if recipe.learns_base:
        if not isinstance(recipe.architecture, BaseArchitecture) or not isinstance(recipe.pack, PackArchitecture):
            raise ConfigError(f"recipe {recipe.name!r}: a base needs an [architecture] and the [pack] of its trunk")
        model = Whole(Base(recipe.architecture), Pack(recipe.pack), begin, frozen_base=False)
        if recipe.base:
            _load(model.base, recipe.architecture, "base", recipe, runs, installed)
        if recipe.start:
            _load(model.pack, recipe.pack, "start", recipe, runs, installed)
        if recipe.learns:
            model.learn_only(recipe.learns)
        return model
    if recipe.base is None or not isinstance(recipe.pack, PackArchitecture):
        raise ConfigError(
            f"recipe {recipe.name!r}: a pack needs `base` (a run or an installed base), and an installed pack as "
            "`start` or its own [pack] architecture"
        )
    model = Whole(load_base(recipe, runs, installed), Pack(recipe.pack), begin, frozen_base=True)
    if recipe.start:
        _load(model.pack, recipe.pack, "start", recipe, runs, installed)
    return model


def load_base(recipe: Recipe, runs: Path, installed: Installed = discover) -> Base:
    """Load the base that `recipe.base` names: a run, whose architecture stands in this recipe, or an installed one."""
    if recipe.base is None or not isinstance(recipe.architecture, BaseArchitecture):
        raise ConfigError(
            f"recipe {recipe.name!r}: give an installed base as `base`, or a run and that base's [architecture]"
        )
    base = Base(recipe.architecture)
    _load(base, recipe.architecture, "base", recipe, runs, installed)
    return base


def part_of(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights under `prefix` in a checkpoint."""
    if not checkpoint.exists():
        raise DataError(f"{checkpoint} does not exist; run that stage first, with its own recipe")
    state: dict[str, torch.Tensor] = read_checkpoint(checkpoint, mapped=True)["network"]
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """Load `weights` of `checkpoint` into `network`; raises DataError when they are another network's."""
    own = network.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise DataError(
            f"{checkpoint} was trained with another architecture; "
            "give the recipe that one, or remove it or use another runs folder"
        )
    network.load_state_dict(weights)


def _load(
    network: nn.Module, architecture: Architecture, key: str, recipe: Recipe, runs: Path, installed: Installed
) -> None:
    """Load what the recipe's `key`, base or start, names."""
    checkpoint = checkpoint_of(runs, getattr(recipe, key))
    if checkpoint.exists():
        weights = part_of(checkpoint, "base." if key == "base" else "pack.")
        load_weights(network, {**_beginning_head(network), **weights}, checkpoint)
    else:
        weights = weights_of(find_pack(recipe, key, runs, installed), architecture, recipe)
        network.load_state_dict({**_beginning_head(network), **weights})


def _beginning_head(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a pack adds to the head before it has learnt, nothing: it may start from one that never did."""
    own = network.state_dict() if isinstance(network, Pack) else {}
    return {name: value for name, value in own.items() if name.startswith("head.")}


def steps_done(checkpoint: Path) -> int:
    """Return how many steps a checkpoint has behind it; 0 when there is none."""
    return int(read_checkpoint(checkpoint, mapped=True).get("step", 0)) if checkpoint.exists() else 0
