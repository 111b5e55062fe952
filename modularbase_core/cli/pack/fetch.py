"""`modularbase pack fetch`: the weights that packs name by address and a bare `pip install` cannot bring."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.pack.sources import fetch_weights
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options


@click.command(short_help="Download weights that installed packs lack.")
@click.argument("names", nargs=-1)
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
@click.pass_context
def fetch(
    ctx: click.Context,
    names: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Download the weights that packs NAMES (by default: all) lack; a broken download goes on where it ended."""
    from modularbase_core.packs.catalog import weights_store
    from modularbase_core.packs.soundness import check_data

    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    chosen = list({one.id: one for one in map(catalog.find, names)}.values()) if names else list(catalog.packs)
    lacking = [one for one in chosen if one.absent]
    fetched, faults = fetch_weights(lacking, weights_store(config.cache_dir), quiet=quiet)
    for one in lacking:
        if not one.absent:
            check_data(one.pack)  # the digests are right, but are these weights of this network?
    if as_json:
        print_json({"fetched": fetched, "faults": faults})
    elif not lacking:
        click.echo("nothing to fetch: every file is here")
    else:
        for name in fetched:
            click.echo(f"fetched {name}")
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if faults:
        ctx.exit(1)
