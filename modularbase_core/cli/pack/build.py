"""`modularbase pack build`: a pack's project becomes a wheel, if its data is sound, and the wheel is looked into."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.pack.sources import pip_of, source_options, sources
from modularbase_core.cli.pack.start import check_started
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.errors import PackError, PipError

if TYPE_CHECKING:
    from modularbase_core.packs.wheels import Wheel
    from modularbase_core.sdk.manifest import Manifest

SKIPPED: Final = ("dist", "build", "data", "runs", "tests", "node_modules", "__pycache__")
"""Folders of a project in which no pack is looked for, besides hidden ones and virtual environments."""


@click.command(short_help="Build the wheel of a pack and check what is in it.")
@click.argument("project", type=click.Path(path_type=Path), default=Path())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [default: PROJECT/dist]."
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@source_options
@json_option
# Any: pip's options, by name
def build(project: Path, output: Path | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build the wheel of the distribution in PROJECT (by default: here) and check what is in it."""
    from modularbase_core.packs.install import isolation
    from modularbase_core.packs.wheels import INDEX_LIMIT_BYTES, look_into

    if not (project / "pyproject.toml").is_file():
        raise PackError(f"{project} holds no pyproject.toml; name the folder of a pack's project")
    packs = _packs(project)
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
    notes = []
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


def _packs(project: Path) -> dict[Path, Manifest]:
    """Check every pack's data under the project; return the manifests by directory."""
    from modularbase_core.packs.soundness import check_data
    from modularbase_core.sdk.pack import Pack

    packs = {}
    for directory in sorted(_directories(project)):
        check_started(Pack(directory))
        packs[directory] = check_data(Pack(directory))
    if not packs:
        raise PackError(
            f"{project} holds no manifest.json, so there is no pack to build; make one with `modularbase pack init`, "
            "or train and ship one"
        )
    return packs


def _directories(project: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(project):
        here = Path(place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in SKIPPED and not (here / name / "pyvenv.cfg").is_file()
        ]
        if "manifest.json" in files:
            yield here


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
