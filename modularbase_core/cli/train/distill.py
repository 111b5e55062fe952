"""`modularbase train distill`: a student learns from a teacher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from modularbase_core.cli.train.flags import RecipeCommand, recipe_argument, stage_options
from modularbase_core.cli.train.training import data_folder, installed_packs, read_stage, torch_needed, train_recipes


@click.command(cls=RecipeCommand, short_help="Train a student on what a teacher says.")
@recipe_argument
@stage_options
# Any: whatever the options hold
def distill(recipe: Path, **options: Any) -> None:
    """Train a pack, or a base with its trunk, on what the recipe's [teacher] says.

    The teacher is another set of packs, a model in Hugging Face's format, or one behind an OpenAI-compatible URL, whose
    key is read from the environment variable that teacher.key_variable names. What it writes is kept in
    RUNS/NAME/teacher.jsonl, so that nothing is asked twice.
    """
    read = read_stage(recipe, "distill", options)
    assert read.teacher is not None
    if read.teacher.kind == "openai" and (name := read.teacher.key_variable):
        with torch_needed():
            from modularbase_core.train.distill import ask_service
            from modularbase_core.train.installed import complete
        data, runs = data_folder(read, options), options["runs"]
        quiet: bool = options["quiet"] or options["as_json"]
        completed = complete(read, runs, installed_packs(options))
        ask_service(completed, data=data, runs=runs, quiet=quiet, key=os.environ.get(name))
    train_recipes([recipe], "distill", options)
