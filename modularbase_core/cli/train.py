"""`modularbase train`: run training recipes and ship what they made as packs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click

from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that the recipes' files are relative to.",
)
@click.option(
    "--runs",
    default="runs",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of checkpoints; an interrupted run resumes from there.",
)
@click.option("--ship", is_flag=True, help="Write the pack directory that each recipe names.")
@click.option("--eager", is_flag=True, help="Do not use torch.compile.")
@click.option("--quiet", is_flag=True, help="Print no losses.")
@json_option
@settings_options
def train(
    recipes: tuple[Path, ...],
    data: Path,
    runs: Path,
    ship: bool,
    eager: bool,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Train RECIPES (TOML files) one after the other.

    What a recipe stands on is a run or an installed pack.
    """
    try:
        from modularbase_core.train.run import run_recipe
        from modularbase_core.train.ship import ship_recipe
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise ModularBaseError(f"training needs torch ({error}); run `pip install torch`") from error

    packs = cache(lambda: installed(read_settings(config_file, cache_dir))[0])
    report = []
    for recipe in recipes:
        checkpoint = run_recipe(
            recipe, data=data, runs=runs, quiet=quiet or as_json, compiled=not eager, installed=packs
        )
        shipped = None
        if ship:
            shipped = ship_recipe(recipe, data=data, runs=runs, quiet=quiet or as_json, installed=packs)
        report.append(
            {"recipe": str(recipe), "checkpoint": str(checkpoint), "pack": None if shipped is None else str(shipped)}
        )
    if as_json:
        print_json(report)
        return
    for line in report:
        click.echo(f"{line['recipe']}: {line['pack'] or line['checkpoint']}")
