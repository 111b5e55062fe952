"""`modularbase train base|router|chat|pack`: one stage, from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modularbase_core.cli.train.flags import RecipeCommand, recipe_argument, stage_options
from modularbase_core.cli.train.training import train_recipes

# Any, below: whatever the options hold


@click.command(cls=RecipeCommand, short_help="Train a base and the trunk that becomes general chat.")
@recipe_argument
@stage_options
def base(recipe: Path, **options: Any) -> None:
    """Train a base together with the trunk that becomes general chat."""
    train_recipes([recipe], "base", options)


@click.command(cls=RecipeCommand, short_help="Train the router of a base.")
@recipe_argument
@stage_options
def router(recipe: Path, **options: Any) -> None:
    """Train the router over a frozen base; it learns no packs, a pack brings its own examples."""
    train_recipes([recipe], "router", options)


@click.command(cls=RecipeCommand, short_help="Train general chat over its base.")
@recipe_argument
@stage_options
def chat(recipe: Path, **options: Any) -> None:
    """Train general chat: the base's trunk goes on alone, over the frozen base."""
    train_recipes([recipe], "chat", options)


@click.command(cls=RecipeCommand, short_help="Train a pack over a base.")
@recipe_argument
@stage_options
def pack(recipe: Path, **options: Any) -> None:
    """Train a pack over a frozen base."""
    train_recipes([recipe], "pack", options)
