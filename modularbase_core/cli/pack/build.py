"""`modularbase pack build`: a pack's project becomes a wheel, if its data is sound, and the wheel is looked into."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.pack.graphs import bring_graphs, packs_of
from modularbase_core.cli.pack.sources import pip_of, source_options, sources
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.errors import ArtefactError, PackError, PipError

if TYPE_CHECKING:
    from modularbase_core.packs.wheels import Wheel
    from modularbase_core.sdk.manifest import Manifest


@click.command(short_help="Build the wheel of a pack and check what is in it.")
@click.argument("project", type=click.Path(path_type=Path), default=Path())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [default: PROJECT/dist]."
)
@click.option("--graphs/--no-graphs", default=True, help="Whether the packs bring their graphs, see `pack graphs`.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@source_options
@json_option
# Any: pip's options, by name
def build(project: Path, output: Path | None, graphs: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build the wheel of the distribution in PROJECT (by default: here) and check what is in it.

    Its packs get their graphs before, so that they compile where torch is not installed.
    """
    from modularbase_core.packs.install import isolation
    from modularbase_core.packs.wheels import INDEX_LIMIT_BYTES, look_into

    if not (project / "pyproject.toml").is_file():
        raise PackError(f"{project} holds no pyproject.toml; name the folder of a pack's project")
    packs, notes = packs_of(project), []
    if graphs:
        try:
            bring_graphs(packs, quiet=quiet or as_json)
        except ArtefactError as error:
            notes.append(f"{error}; until then whoever installs the pack needs torch to compile it")
    where = sources(options["index_url"], options["extra_index_url"], options["find_links"], options["pre"])
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        try:
            path = pip_of(quiet).wheel(str(project.absolute()), Path(scratch, "wheel"), where, *isolation(project))
        except PipError as error:
            click.echo(error.output.rstrip(), err=True)  # the author's own build, to be mended by its author
            raise
        wheel = look_into(path, Path(scratch, "unpacked"))
        _check_whole(packs, wheel)
        final = _keep(path, output or project / "dist")
    if final.stat().st_size > INDEX_LIMIT_BYTES:
        notes.append(
            f"{final.name} has {final.stat().st_size / 1e6:.0f} MB, but package indexes take "
            f"{INDEX_LIMIT_BYTES // 10**6} MB; put the weights on a server of your own and "
            "name their addresses under `downloads` in the manifest"
        )
    if as_json:
        print_json({"wheel": str(final), "packs": [one.id for one in wheel.packs], "notes": notes})
        return
    ids = ", ".join(f"{one.id} {one.version}" for one in wheel.packs)
    click.echo(f"built {final} ({final.stat().st_size / 1e6:.1f} MB) with {ids}")
    for note in notes:
        click.echo(f"note: {note}")


def _check_whole(packs: dict[Path, Manifest], wheel: Wheel) -> None:
    """Raise PackError when a pack of the project is not in the wheel, or not with all its files.

    Build tools leave out what version control ignores, and trained weights often are.
    """
    held = {one.id: one for one in wheel.packs}
    for directory, manifest in packs.items():
        if manifest.id not in held:
            raise PackError(
                f"{wheel.path.name} lacks the pack {manifest.id!r} of {directory}; include that folder in "
                "pyproject.toml and see that .gitignore does not name it"
            )
        if held[manifest.id] != manifest:
            raise PackError(f"{wheel.path.name} holds another {manifest.id!r} than {directory}; remove old builds")


def _keep(path: Path, folder: Path) -> Path:
    final = folder / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as scratch:
            Path(shutil.copy(path, scratch)).replace(final)
    except OSError as error:
        raise PackError(f"{final} cannot be written ({error.strerror}); name another folder with --output") from error
    return final
