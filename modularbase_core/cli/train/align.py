"""`modularbase train align`: a pack that was made for one base serves the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modularbase_core.cli.train.flags import RecipeCommand, recipe_argument, stage_options
from modularbase_core.cli.train.training import train_recipes


@click.command(cls=RecipeCommand, short_help="Align a pack to a new version of its base.")
@recipe_argument
@stage_options
# Any: whatever the options hold
def align(recipe: Path, **options: Any) -> None:
    """Align a pack (`start`) to another base (`base`), on a fiftieth of what training it takes.

    Base and expert layers stay as they are; the input adapter learns on a little of what the pack learnt from, and
    with --learns output its output adapter too. With --old-base the start is found by least squares. --ship writes
    the pack's next version, for the new base.
    """
    train_recipes([recipe], "align", options)
