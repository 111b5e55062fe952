"""`modularbase session export`: a conversation as one file that can be carried elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.progress import byte_bar
from modularbase_core.cli.report import in_bytes
from modularbase_core.cli.settings import read_settings, settings_options


@click.command(short_help="Write a conversation into a file.")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@settings_options
def export(name: str, file: Path, force: bool, quiet: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Write session NAME into FILE, as JSON lines; packed with gzip where FILE ends with .gz."""
    from modularbase_core.host.session_export import export_session

    config = read_settings(config_file, cache_dir)
    with byte_bar(quiet=quiet) as progress:
        done = export_session(config, name, file, force=force, progress=progress)
    for fault in done.faults:
        click.secho(f"note: {fault}", dim=True, err=True)
    click.echo(f"exported {name} ({done.tokens:,} tokens, {done.pages:,} pages, {in_bytes(done.bytes)}) to {file}")
