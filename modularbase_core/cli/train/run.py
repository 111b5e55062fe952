"""`modularbase train run`: several recipes in turn, each by its own stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modularbase_core.cli.train.flags import RecipeCommand, stage_options
from modularbase_core.cli.train.training import train_recipes


@click.command(cls=RecipeCommand, short_help="Run recipes in turn, each by its own stage.")
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@stage_options
# Any: whatever the options hold
def run(recipes: tuple[Path, ...], **options: Any) -> None:
    """Train RECIPES (TOML files) one after the other, each by its own stage.

    What a recipe stands on is a run or an installed pack. `modularbase train RECIPE.toml ...` means this.
    """
    train_recipes(recipes, None, options)
