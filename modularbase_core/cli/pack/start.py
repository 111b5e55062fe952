"""`modularbase pack start`: the data that lets a rendered pack run before it is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError, PackError

if TYPE_CHECKING:
    from modularbase_core.config import EngineConfig
    from modularbase_core.packs.catalog import Catalog
    from modularbase_core.sdk.manifest import Manifest
    from modularbase_core.sdk.pack import Pack


@click.command(short_help="Make the data of a pack that is not trained yet.")
@click.argument("directory", type=click.Path(path_type=Path), default=Path())
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option
@settings_options
def start(directory: Path, quiet: bool, as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Make the data of the pack in DIRECTORY (by default: here), a project or the pack's own folder.

    Without weights it gets general chat's; its own are kept. Routing keys are made from its examples.json.
    """
    config = read_settings(config_file, cache_dir)
    data = pack_folder(directory)
    made = make_data(data, config, installed(config)[0], quiet=quiet or as_json)
    if as_json:
        print_json({"id": made.id, "version": made.version, "directory": str(data)})
    else:
        click.echo(f"{made.id} {made.version} is ready in {data} ({made.size_mb:.1f} MB)")


def make_data(data: Path, config: EngineConfig, catalog: Catalog, *, quiet: bool = False) -> Manifest:
    """Complete the pack in the folder `data`, showing what is compiled meanwhile."""
    from modularbase_core.host.start_pack import start_pack

    with progress_bar(quiet=quiet) as progress:
        return start_pack(data, catalog, config, progress)


def start_rendered(project: str, called: str) -> str:
    """Run `start` on a project that plain cookiecutter rendered; return why there is no data yet, or nothing.

    called: what the project's folder is called where the user is. Exits when it is interrupted.
    """
    try:
        start.main([project], standalone_mode=False)
    except ModularBaseError as error:
        return no_data_yet(called, error)
    except click.Abort:
        sys.exit(1)
    return ""


def no_data_yet(called: object, error: ModularBaseError) -> str:
    """Say in one sentence what is missing and how to make it later."""
    return f"{called} has no data yet ({error}); later run `modularbase pack start {called}`"


def check_started(pack: Pack) -> None:
    """Raise PackError for a pack that has a manifest alone: no weights, and no files listed."""
    manifest = pack.manifest
    if not manifest.files and not manifest.downloads and not pack.weights.is_file():
        raise PackError(f"{pack.directory} has no data yet; run `modularbase pack start {pack.directory}`")


def pack_folder(directory: Path) -> Path:
    """Return the folder of the one pack that a project holds, or `directory` where it is a pack's own.

    Raises PackError when there is none, or several.
    """
    if (directory / "manifest.json").is_file():
        return directory
    found = sorted(path.parent for path in directory.glob("*/*/manifest.json"))
    if not found:
        raise PackError(f"{directory} holds no pack, for it has no manifest.json; name a pack's folder or project")
    if len(found) > 1:
        raise PackError(f"{directory} holds several packs ({', '.join(map(str, found))}); name one of these folders")
    return found[0]
