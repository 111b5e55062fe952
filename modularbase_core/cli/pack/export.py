"""`modularbase pack export`: a pack's whole data in a folder of its own, downloaded weights included."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError, PackError


@click.command(short_help="Write a pack's whole data into a new folder.")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@settings_options
def export(name: str, directory: Path, config_file: Path | None, cache_dir: Path | None) -> None:
    """Write the data of pack NAME into the new folder DIRECTORY, and check it there."""
    from modularbase_core.packs.resolve import check_fetched
    from modularbase_core.sdk.manifest import MANIFEST_FILE
    from modularbase_core.sdk.pack import GRAPH_SUFFIX
    from modularbase_core.sdk.testing import check_pack

    config = read_settings(config_file, cache_dir)
    one = installed(config)[0].find(name)
    check_fetched(one)
    if directory.exists() or directory.is_symlink():
        raise PackError(f"{directory} exists; name a folder that does not")
    held = one.pack.directory
    texts = [path.name for path in held.iterdir() if path.is_file() and path.suffix in (".md", ".txt", "")]
    graphs = [str(path.relative_to(held)) for path in one.pack.graphs.glob(f"*{GRAPH_SUFFIX}")]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            whole = Path(scratch, directory.name)
            for file in (MANIFEST_FILE, *one.manifest.files, *texts, *graphs):
                (whole / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(one.pack.path(file), whole / file)
            try:
                manifest = check_pack(whole)
            except ModularBaseError as error:
                told = str(error).replace(f"{scratch}/", "")
                raise type(error)(f"{told}; nothing was exported") from error
            whole.rename(directory)
    except OSError as error:
        raise PackError(f"{directory} cannot be written ({error.strerror}); free space or name another") from error
    click.echo(f"exported {manifest.id} {manifest.version} ({manifest.size_mb:.1f} MB) to {directory}")
