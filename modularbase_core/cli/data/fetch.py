"""`modularbase data fetch`: public texts, from those who keep them into a folder."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.data.list import catalogue_option
from modularbase_core.cli.progress import byte_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.errors import ModularBaseError
from modularbase_core.train.sources import PublicSource, choose, read_catalogue


@click.command(short_help="Fetch public texts by name.")
@click.argument("names", nargs=-1, required=True)
@click.option("--to", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to fetch into.")
@click.option("--unpack", is_flag=True, help="Unpack archives too, beside themselves.")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@catalogue_option
@json_option
@click.pass_context
def fetch(
    ctx: click.Context, names: tuple[str, ...], to: Path, unpack: bool, quiet: bool, catalogue: Path, as_json: bool
) -> None:
    """Fetch the sources NAMES, each into a folder of its own in the folder --to.

    A broken download goes on where it ended; nothing that is there is written over.
    """
    from modularbase_core.train.fetching import fetch_source
    from modularbase_core.train.fetching import unpack as unpack_archive

    fetched, faults = [], []
    with byte_bar(quiet=quiet or as_json) as progress:
        for source in choose(read_catalogue(catalogue), names):
            try:
                files = fetch_source(source, to, progress)
                unpacked = [unpack_archive(file, lambda told: click.echo(told, err=True)) for file in files if unpack]
                fetched.append((source, files, [folder for folder in unpacked if folder is not None]))
            except ModularBaseError as error:
                faults.append(str(error))
    if as_json:
        print_json({"fetched": [_described(*one) for one in fetched], "faults": faults})
    else:
        for one in fetched:
            click.echo(_told(*one, to))
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if faults:
        ctx.exit(1)


def _described(source: PublicSource, files: list[Path], folders: list[Path]) -> dict[str, object]:
    return {
        "name": source.name,
        "licence": source.licence,
        "home": source.home,
        "files": [str(file) for file in files],
        "unpacked": [str(folder) for folder in folders],
        "texts": source.files,
    }


def _told(source: PublicSource, files: list[Path], folders: list[Path], to: Path) -> str:
    size = sum(file.stat().st_size for file in files) / 1e6
    what = "unpacked" if folders else "as it came; --unpack unpacks archives"
    lines = [f"{source.name}: {len(files)} file{'s'[: len(files) > 1]}, {size:.1f} MB, in {to / source.name} ({what})"]
    lines.append("; ".join(filter(None, (f"  {source.licence}", source.home))))
    if source.files:
        lines.append(f"  the texts are {source.files}")
    return "\n".join(lines)
