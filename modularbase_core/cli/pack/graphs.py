"""`modularbase pack graphs`: what spares torch to those who install a pack, made anew beside its manifest.

Decides too which folders of a project hold packs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.pack.start import check_started
from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.errors import PackError

if TYPE_CHECKING:
    from modularbase_core.sdk.manifest import Manifest

SKIPPED: Final = ("dist", "build", "data", "runs", "tests", "node_modules", "__pycache__")
"""Folders of a project in which no pack is looked for, besides hidden ones and virtual environments."""


@click.command(short_help="Make what lets packs compile without torch.")
@click.argument("projects", nargs=-1, type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
def graphs(projects: tuple[Path, ...], quiet: bool, as_json: bool) -> None:
    """Bring the graphs of every pack under PROJECTS (by default: here) up to date.

    `pack build` does so too. A graph fits one version of ModularBase and of TVM; where none fits, compiling takes
    torch.
    """
    packs = packs_of(*(projects or (Path(),)))
    bring_graphs(packs, quiet=quiet or as_json)
    # Any: plain JSON values
    report: list[dict[str, Any]] = []
    for one, files in ((manifest, graph_files(place)) for place, manifest in packs.items()):
        report.append({"id": one.id, "graphs": len(files), "bytes": sum(path.stat().st_size for path in files)})
    if as_json:
        print_json(report)
        return
    for line in report:
        click.echo(f"{line['id']}: {line['graphs']} graphs, {line['bytes'] / 1e3:.0f} KB")


def bring_graphs(packs: Mapping[Path, Manifest], *, quiet: bool) -> None:
    """Make the graphs that packs lack, by directory; raises ArtefactError where torch is missing."""
    from modularbase_core.device.graphs import write_graphs
    from modularbase_core.sdk.pack import Pack

    with progress_bar(quiet=quiet) as progress:
        write_graphs({Pack(place).graphs: one.network for place, one in packs.items()}, progress)


def graph_files(place: Path) -> list[Path]:
    """List the graphs of the pack in a directory."""
    from modularbase_core.sdk.pack import GRAPH_SUFFIX, Pack

    return sorted(Pack(place).graphs.glob(f"*{GRAPH_SUFFIX}"))


def packs_of(*projects: Path) -> dict[Path, Manifest]:
    """Check every pack's data under the projects; return the manifests by directory."""
    from modularbase_core.packs.soundness import check_data
    from modularbase_core.sdk.pack import Pack

    packs = {}
    for directory in sorted(place for project in projects for place in _directories(project)):
        check_started(Pack(directory))
        packs[directory] = check_data(Pack(directory))
    if not packs:
        raise PackError(
            f"{', '.join(map(str, projects))} holds no manifest.json, so there is no pack to build; "
            "make one with `modularbase pack init`, or train and ship one"
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
