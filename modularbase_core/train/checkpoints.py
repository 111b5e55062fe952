"""What earlier stages left: networks built from their checkpoints, for the stages that stand on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.train.language import Whole
from modularbase_core.train.recipe import Recipe


def build_model(recipe: Recipe, runs: Path, begin: int) -> Whole:
    """Make the stage's model from the runs it stands on."""
    if recipe.stage == "base":
        if not isinstance(recipe.architecture, BaseArchitecture) or not isinstance(recipe.pack, PackArchitecture):
            raise ConfigError(f"recipe {recipe.name!r}: a base needs an [architecture] and the [pack] of its trunk")
        return Whole(Base(recipe.architecture), Pack(recipe.pack), begin, frozen_base=False)
    if recipe.base is None or not isinstance(recipe.pack, PackArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: a pack needs `base` (a run) and its own [pack] architecture")
    model = Whole(load_base(recipe, runs), Pack(recipe.pack), begin, frozen_base=True)
    if recipe.start:
        checkpoint = runs / recipe.start / "checkpoint.pt"
        load_weights(model.pack, part_of(checkpoint, "pack."), checkpoint)
    return model


def load_base(recipe: Recipe, runs: Path) -> Base:
    """Load the base of the run that `recipe.base` names; its architecture stands in this recipe."""
    if recipe.base is None or not isinstance(recipe.architecture, BaseArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: give `base` (a run) and that base's [architecture]")
    base = Base(recipe.architecture)
    checkpoint = runs / recipe.base / "checkpoint.pt"
    load_weights(base, part_of(checkpoint, "base."), checkpoint)
    return base


def part_of(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights under `prefix` in a checkpoint."""
    if not checkpoint.exists():
        raise DataError(f"{checkpoint} does not exist; run that stage first, with its own recipe")
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["network"]
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


def steps_done(checkpoint: Path) -> int:
    """Return how many steps a checkpoint has behind it; 0 when there is none."""
    return int(torch.load(checkpoint, weights_only=True).get("step", 0)) if checkpoint.exists() else 0
