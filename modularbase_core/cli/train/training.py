"""What every training command does with its recipes: read them, run them, ship what they made, and report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.report import print_json
from modularbase_core.cli.settings import installed, read_settings
from modularbase_core.cli.train.flags import overrides
from modularbase_core.errors import TORCH_REMEDY, ConfigError, ModularBaseError
from modularbase_core.train.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import Catalog


# Any: whatever the options hold
def train_recipes(paths: Sequence[Path], stage: str | None, options: Mapping[str, Any]) -> None:
    """Train recipes one after the other and tell what came out.

    stage: the one that they must be of; None lets each be of its own. options: what `flags.stage_options` gave.
    Raises ConfigError for a recipe of another stage, before anything is trained.
    """
    report = run_recipes(paths, stage, options)
    if options["as_json"] and report:
        print_json(report)
        return
    for line in report:
        click.echo(f"{line['recipe']}: {line['pack'] or line['checkpoint']}")


def run_recipes(paths: Sequence[Path], stage: str | None, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train recipes as `train_recipes` does and return what there is to tell, nothing but in the first process."""
    recipes = [read_stage(path, stage, options) for path in paths]
    if len(recipes) > 1 and options["key_name"]:
        raise ConfigError("--name names one run, but there are several recipes; leave it out")
    folders = [data_folder(recipe, options) for recipe in recipes]
    with torch_needed():
        from modularbase_core.train.parallel import first_process
        from modularbase_core.train.record import read_record
        from modularbase_core.train.run import run_recipe
        from modularbase_core.train.ship import ship_recipe
    packs, first = installed_packs(options), first_process()
    quiet: bool = options["quiet"] or options["as_json"]
    report: list[dict[str, Any]] = []
    for path, recipe, data in zip(paths, recipes, folders, strict=True):
        places = {"data": data, "runs": options["runs"], "quiet": quiet, "installed": packs}
        checkpoint = run_recipe(recipe, **places)
        shipped = ship_recipe(recipe, **places) if options["ship"] and first else None
        record = read_record(checkpoint)
        told = {key: record.get(key) for key in ("steps", "tokens", "loss", "seconds")}
        made = {"checkpoint": str(checkpoint), "pack": None if shipped is None else str(shipped)}
        report.append({"recipe": str(path), "stage": recipe.stage, **made, **told})
    return report if first else []


def read_stage(path: Path, stage: str | None, options: Mapping[str, Any]) -> Recipe:
    """Read a recipe with the flags' keys; raises ConfigError when it is of another stage than `stage`."""
    recipe = read_recipe(path, overrides(options))
    if stage is not None and recipe.stage != stage:
        raise ConfigError(f"{path} is of stage {recipe.stage!r}; run `modularbase train {recipe.stage} {path}`")
    return recipe


def data_folder(recipe: Recipe, options: Mapping[str, Any]) -> Path:
    """Return the folder of the recipe's files: --data, or else its own; raises ConfigError when there is none."""
    folder: Path | None = options["data"]
    if folder is not None:
        return folder
    if not recipe.data:
        raise ConfigError(f"recipe {recipe.name!r} does not say where its files lie; give --data, or `data` in it")
    if not (recipe.folder / recipe.data).is_dir():
        where = recipe.folder / recipe.data
        raise ConfigError(f"recipe {recipe.name!r}: data is {recipe.data!r}, but {where} is no folder; name one")
    return recipe.folder / recipe.data


def installed_packs(options: Mapping[str, Any]) -> Callable[[], Catalog]:
    """Return what lists the installed packs, when a recipe first needs one."""
    return cache(lambda: installed(read_settings(options["config_file"], options["cache_dir"]))[0])


@contextmanager
def torch_needed() -> Iterator[None]:
    """Turn the lack of torch into one sentence."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise ModularBaseError(f"training needs torch ({error}); {TORCH_REMEDY}") from error
