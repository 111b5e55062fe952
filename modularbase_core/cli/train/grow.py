"""`modularbase train grow`: new data finds the pack that is to learn it, or makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.report import lay_out, print_json
from modularbase_core.cli.settings import installed, read_settings
from modularbase_core.cli.train.flags import RecipeCommand, overrides, stage_options
from modularbase_core.cli.train.growth import (
    New,
    decide_by_messages,
    described,
    grown_recipe,
    new_project,
    told,
)
from modularbase_core.cli.train.training import data_folder, read_stage, run_recipes, torch_needed
from modularbase_core.errors import ConfigError

if TYPE_CHECKING:
    from modularbase_core.train.decision import Decision


@click.command(cls=RecipeCommand, short_help="Let a pack learn new data, or make one of it.")
@click.argument("data_or_recipe", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--to", "pack", metavar="PACK", help="Pack that learns, instead of the one that routing finds.")
@click.option("--new", "pack_id", metavar="ID", help="Make a new pack of this id, whatever routing finds.")
@click.option("--domain", help="What a new pack is about, in a few words; by default its id.")
@click.option(
    "--output",
    default=".",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="Folder in which a new pack's project is made; by default this one.",
)
@click.option(
    "--replay",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="What the pack learnt from before; may be repeated. By default its own examples.",
)
@click.option("--decide-only", is_flag=True, help="Tell which pack would learn, and train nothing.")
@stage_options
# Any: whatever the options hold
def grow(data_or_recipe: tuple[Path, ...], decide_only: bool, **options: Any) -> None:
    """Let the pack that routing finds for DATA learn it, beside some of what it knew; or make a new pack of it.

    DATA are files or folders of records, as a recipe's mix names them. Their messages are routed as chat routes them:
    the pack that most reach learns them; where more than --threshold reach none and they cohere, they make a new pack,
    which --new names. Both new and replayed records are measured before and after, on a part that is kept out.
    With --ship the pack is written, its next version with keys that find the new messages too.

    A RECIPE.toml of stage grow is run as it says.
    """
    if options["pack"] and options["pack_id"]:
        raise click.UsageError("give --to or --new, not both", click.get_current_context())
    recipe = data_or_recipe[0] if len(data_or_recipe) == 1 and data_or_recipe[0].suffix == ".toml" else None
    decision: Decision | None = None
    if recipe is None:
        new = New(data_or_recipe, tuple(options["replay"]))
        with torch_needed():
            decision, recipe = _prepared(new, options, decide_only=decide_only)
        # the flags' keys stand in the recipe now, whose files are named in full
        options = {**options, **{name: None for name in options if name.startswith("key_")}, "data": None}
    elif decide_only:
        read = read_stage(recipe, "grow", options)
        with torch_needed():
            decision, recipe = _decided(read.mix, data_folder(read, options), options), None
    if recipe is None:
        assert decision is not None
        if options["as_json"]:
            print_json({"decision": described(decision)})
        else:
            click.echo(told(decision))
        return
    _run(recipe, decision, options)


def _prepared(new: New, options: Mapping[str, Any], *, decide_only: bool) -> tuple[Decision, Path | None]:
    """Decide which pack learns, and write the recipe by which it does."""
    from modularbase_core.train.decision import Decision

    config = read_settings(options["config_file"], options["cache_dir"])
    catalog = installed(config)[0]
    quiet: bool = options["quiet"] or options["as_json"]
    if options["pack"]:
        decision = Decision(counts={}, pack=catalog.find(options["pack"]).id, coherence=None, why="--to names it")
    elif options["pack_id"]:
        decision = Decision(counts={}, pack=None, coherence=None, why="--new says so")
    else:
        decision = _decided(new.sources, Path(), options)
    if decide_only:
        return decision, None
    if decision.counts and not options["as_json"]:
        click.echo(told(decision))
    keys = overrides(options)
    if decision.pack is not None:
        return decision, grown_recipe(new, decision.pack, config, catalog, keys, options["runs"])
    if not options["pack_id"]:
        raise ConfigError(f"{decision.why}, so they make a new pack; give its id with --new, or a pack with --to")
    return decision, new_project(
        new, options["pack_id"], options["domain"], options["output"], config, catalog, keys, quiet=quiet
    )


def _decided(sources: Any, data: Path, options: Mapping[str, Any]) -> Decision:
    config = read_settings(options["config_file"], options["cache_dir"])
    catalog, manager = installed(config)
    threshold = options["key_threshold"]
    return decide_by_messages(
        sources,
        data,
        config,
        catalog,
        manager,
        threshold=0.5 if threshold is None else threshold,
        quiet=options["quiet"] or options["as_json"],
    )


def _run(recipe: Path, decision: Decision | None, options: Mapping[str, Any]) -> None:
    report = run_recipes([recipe], "grow", options)
    if not report:  # not the first process
        return
    from modularbase_core.train.grow import read_growth

    name = read_stage(recipe, "grow", options).name
    growth = read_growth(options["runs"], name)
    if options["as_json"]:
        print_json({"decision": None if decision is None else described(decision), **report[0], "perplexity": growth})
        return
    rows = [
        (what, *(f"{growth[when][what]:.2f}" for when in ("before", "after")))
        for what in ("new", "replay")
        if growth["before"].get(what) is not None
    ]
    if rows:
        click.echo("\n".join(lay_out([("perplexity", "before", "after"), *rows])))
    click.echo(f"{recipe}: {report[0]['pack'] or report[0]['checkpoint']}")
