"""Run a recipe by its stage: what it stands on is found, and a checkpoint left that the next stage and `ship` read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from modularbase_core.errors import ConfigError
from modularbase_core.packs.catalog import discover
from modularbase_core.train.checkpoints import steps_done
from modularbase_core.train.installed import Installed, checkpoint_of, complete
from modularbase_core.train.parallel import first_process
from modularbase_core.train.plan import plan_recipe, shortfall
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.record import recorded
from modularbase_core.train.repeatable import repeatable
from modularbase_core.train.saving import check_keys, keys_of, read_checkpoint


class Stage(Protocol):
    """Trains what a recipe of its stage describes and keeps it in `checkpoint`, from which it also goes on."""

    def __call__(
        self, recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed
    ) -> None:
        """Train to the last step."""


STAGE_FUNCTIONS: Final[Mapping[str, str]] = {
    "base": "learn:train_language",
    "router": "router:train_router",
    "chat": "learn:train_language",
    "pack": "learn:train_language",
    "align": "align:run_align",
    "grow": "grow:run_grow",
    "distill": "distill:run_distill",
}
"""Module and function of each stage, imported when it runs."""


def run_recipe(
    recipe: Recipe | Path,
    *,
    data: Path,
    runs: Path,
    quiet: bool = False,
    compiled: bool = True,
    installed: Installed = discover,
) -> Path:
    """Train one recipe and return its checkpoint; an interrupted run resumes from there, and run.json records it.

    data: the folder the recipe's files are relative to. runs: where each stage keeps `NAME/checkpoint.pt`.
    compiled: False leaves torch.compile out, whatever the recipe says. installed: lists the packs that it may stand on.
    """
    if isinstance(recipe, Path):
        recipe = read_recipe(recipe)
    checkpoint = checkpoint_of(runs, recipe.name)
    recipe = complete(replace(recipe, compile=recipe.compile and compiled), runs, installed)
    if steps_done(checkpoint) >= recipe.steps:
        check_keys(keys_of(recipe), read_checkpoint(checkpoint, mapped=True), checkpoint)
        return checkpoint
    if first_process() and not quiet:
        _tell_shortfall(recipe, runs)
    with repeatable(recipe), recorded(recipe, checkpoint) if first_process() else nullcontext():
        stage_of(recipe)(recipe, data=data, runs=runs, checkpoint=checkpoint, quiet=quiet, installed=installed)
    return checkpoint


def stage_of(recipe: Recipe) -> Stage:
    """Import what trains the recipe's stage."""
    module, function = STAGE_FUNCTIONS[recipe.stage].split(":")
    stage: Stage = getattr(importlib.import_module(f"modularbase_core.train.{module}"), function)
    return stage


def _tell_shortfall(recipe: Recipe, runs: Path) -> None:
    """Say beforehand where memory or disk will hardly do; it is an estimate, so the run starts all the same."""
    try:
        reason = shortfall(plan_recipe(recipe, runs, measured=False))
    except ConfigError:  # a network is missing, and the stage says which
        return
    if reason:
        print(f"note: {reason}", file=sys.stderr, flush=True)
