"""`modularbase train plan`: what a recipe will take, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.report import in_bytes, json_option, lay_out, print_json
from modularbase_core.cli.settings import settings_options
from modularbase_core.cli.train.flags import RecipeCommand, key_options, overrides, recipe_argument, runs_option
from modularbase_core.cli.train.training import installed_packs, torch_needed
from modularbase_core.errors import ConfigError
from modularbase_core.train.recipe import read_recipe

if TYPE_CHECKING:
    from modularbase_core.train.plan import Phase, Plan


@click.command(cls=RecipeCommand, short_help="Tell what a recipe will take, before it starts.")
@recipe_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the recipe's files, to count a router's messages.",
)
@runs_option
@click.option("--no-measure", is_flag=True, help="Run no step, so tell no time.")
@json_option
@key_options
@settings_options
# Any: whatever the options hold
def plan(recipe: Path, data: Path | None, runs: Path, no_measure: bool, as_json: bool, **options: Any) -> None:
    """Tell the parameters, memory, time and disk that RECIPE will take on this machine.

    Time is that of some real steps on made-up tokens; no run is read, and nothing is written. Exits with 1
    where memory or disk does not suffice.
    """
    said = read_recipe(recipe, overrides(options))
    with torch_needed():
        from modularbase_core.train.installed import complete
        from modularbase_core.train.plan import plan_recipe, shortfall
        from modularbase_core.train.repeatable import repeatable
    whole = complete(said, runs, installed_packs(options))
    with repeatable(whole):
        folder = data or (whole.folder / whole.data if whole.data else None)
        made = plan_recipe(whole, runs, data=folder, measured=not no_measure)
    reason = shortfall(made)
    if as_json:
        print_json({**_as_json(made), "shortfall": reason})
        if reason:
            click.get_current_context().exit(1)
        return
    for line in lay_out(_rows(made)):
        click.echo(line)
    if reason:
        raise ConfigError(reason)


def _as_json(plan: Plan) -> dict[str, Any]:  # Any: JSON
    memory = plan.memory
    names = ("weights", "gradients", "optimiser", "texts", "reading", "process")
    passes = {
        "activations": memory.activations(checkpointed=False),
        "activations_checkpointed": memory.activations(checkpointed=True),
    }
    return {
        "name": plan.recipe.name,
        "stage": plan.recipe.stage,
        "tokens": plan.recipe.tokens,
        "steps": plan.recipe.steps,
        "parameters": plan.parameters,
        "learning": plan.learning,
        "parts": [{"name": one.name, "parameters": one.parameters, "learning": one.learning} for one in plan.parts],
        "memory_bytes": {**{name: getattr(memory, name) for name in names}, **passes, "peak": plan.peak_bytes},
        "free_memory_bytes": plan.free_memory,
        "flops": plan.flops,
        "phases": [
            {
                "window": one.window,
                "steps": one.steps,
                "step_flops": one.step_flops,
                "step_seconds": one.step_seconds,
                "first_seconds": one.first_seconds,
            }
            for one in plan.phases
        ],
        "seconds": plan.seconds,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "pack_bytes": plan.shipped_bytes,
        "free_disk_bytes": plan.free_disk,
    }


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    recipe, memory = plan.recipe, plan.memory
    unit = "messages" if recipe.stage == "router" else "tokens"
    rows = [
        (recipe.name, recipe.stage, f"{recipe.tokens:,} {unit} in {recipe.steps:,} steps of {recipe.batch_tokens:,}"),
        ("parameters", f"{plan.parameters:,}", f"of which {plan.learning:,} learn"),
    ]
    rows += [(f"  {one.name}", f"{one.parameters:,}", "" if one.learning else "frozen") for one in plan.parts]
    free = "" if plan.free_memory is None else f"of {in_bytes(plan.free_memory)} that are free"
    rows.append(("memory", in_bytes(plan.peak_bytes), f"at its peak, {free}" if free else "at its peak"))
    less = recipe.checkpoint_activations
    other = f"{in_bytes(memory.activations(checkpointed=not less))} with{'out' * less} checkpoint_activations"
    rows += [
        ("  weights", in_bytes(memory.weights), ""),
        ("  gradients", in_bytes(memory.gradients), ""),
        ("  optimiser", in_bytes(memory.optimiser), "adamw" if recipe.stage == "router" else recipe.optimiser),
        ("  activations", in_bytes(memory.activations(checkpointed=less)), "" if recipe.stage == "router" else other),
        ("  texts", in_bytes(memory.texts), f"{in_bytes(memory.reading)} while they are read"),
        ("  process", in_bytes(memory.process), "torch itself"),
        ("arithmetic", _flops(plan.flops), "forward and back, all steps"),
        (
            "disk",
            in_bytes(plan.checkpoint_bytes),
            f"a checkpoint, two while one is written; {in_bytes(plan.free_disk)} free",
        ),
        ("", in_bytes(plan.shipped_bytes), "the weights that --ship writes"),
    ]
    if plan.seconds is None:
        return [*rows, ("time", "", "not measured")]
    rows.append(("time", _spoken(plan.seconds), f"of which {_spoken(plan.reading_seconds)} to read the texts"))
    return [*rows, *map(_phase_row, plan.phases)]


def _phase_row(phase: Phase) -> tuple[str, str, str]:
    each = f"{phase.steps:,} steps of {phase.step_seconds:.3g} s"
    compiling = f", {_spoken(phase.first_seconds)} to compile" if phase.first_seconds > 1 else ""
    return f"  windows of {phase.window:,}", _spoken(phase.seconds or 0.0), each + compiling


def _flops(count: int) -> str:
    for power, letter in ((15, "P"), (12, "T"), (9, "G")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {letter}FLOP"
    return f"{count / 1e6:.3g} MFLOP"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
