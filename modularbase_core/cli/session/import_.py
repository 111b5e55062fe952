"""`modularbase session import`: a conversation from a file that `export` wrote."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.progress import byte_bar
from modularbase_core.cli.settings import installed, read_settings, settings_options


@click.command(name="import", short_help="Bring a conversation in from a file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name", required=False)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@settings_options
def import_file(file: Path, name: str | None, quiet: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Bring in the session that was exported to FILE, under its own name or NAME.

    All of it is checked before the session is there.
    """
    from modularbase_core.host.session_import import import_session

    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    with byte_bar(quiet=quiet) as progress:
        done = import_session(config, file, name, catalog=catalog, progress=progress)
    click.echo(f"imported {done.name} ({done.tokens:,} tokens, {done.pages:,} pages)")
    if done.base is not None and not done.base_installed:
        click.secho(
            f"note: it was held with the base {done.base}, which is not installed; it can go on once that is",
            dim=True,
            err=True,
        )
