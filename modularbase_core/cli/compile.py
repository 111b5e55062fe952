"""`modularbase compile`: build ahead what the first chat would build, or what another machine will run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ArtefactError, ConfigError, PluginError, nearest

if TYPE_CHECKING:
    from modularbase_core.device.target import Target
    from modularbase_core.packs.catalog import Catalog, InstalledPack


@click.command(name="compile", short_help="Compile packs ahead, for this machine or another.")
@click.argument("packs", nargs=-1)
@click.option(
    "--target", metavar="NAME", default="cpu", show_default=True, help="Where it will run: cpu, cuda, or a plugin's."
)
@click.option("--arch", "architectures", help="GPU architectures, by commas, such as sm_86,sm_90 [default: all known].")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def compile_packs(
    packs: tuple[str, ...],
    target: str,
    architectures: str | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Compile the architectures of PACKS (by default: of all installed) into the cache.

    Packs of one architecture share an artefact. A CUDA artefact needs no GPU to be built.
    """
    from modularbase_core.host.builtin import hooks_of

    config = read_settings(config_file, cache_dir)
    catalog, manager = installed(config)
    hooks = hooks_of(catalog, manager)
    machine = _target(target, architectures, hooks.targets())
    for fault in hooks.take_faults():
        click.secho(f"note: {fault}", dim=True, err=True)
    chosen = _chosen(packs, catalog, config.base)
    with progress_bar(quiet=quiet) as progress:
        report = _build(chosen, machine, config.precisions, config.cache_dir, progress)
    if as_json:
        print_json(report)
        return
    for artefact in report:
        click.echo(f"{', '.join(artefact['packs'])}: {artefact['directory']}")


# Any: plain JSON values, as plugins describe targets
def _target(name: str, architectures: str | None, known: Mapping[str, Mapping[str, Any]]) -> Target:
    from modularbase_core.device.target import CUDA_ARCHITECTURES, Target

    if name not in known:
        raise ConfigError(f"there is no target {name!r}{nearest(name, known)}; use one of {', '.join(sorted(known))}")
    try:
        machine = Target.from_dict(dict(known[name]))
    except ArtefactError as error:
        raise PluginError(
            f"the target {name!r} lacks a part; its plugin must describe name, system, machine, level and features"
        ) from error
    if machine.name not in ("cpu", "cuda"):
        raise PluginError(f"the target {name!r} is described as {machine.name!r}; its plugin must say cpu or cuda")
    if architectures is None:
        return machine
    if machine.name == "cpu":
        raise ConfigError("--arch is for --target cuda; a processor's features come with its target")
    wanted = tuple(architectures.split(","))
    for one in wanted:
        if one not in CUDA_ARCHITECTURES:
            archs = ", ".join(CUDA_ARCHITECTURES)
            raise ConfigError(f"--arch names {one!r}; use some of {archs}{nearest(one, CUDA_ARCHITECTURES)}")
    return replace(machine, features=wanted)


def _chosen(words: tuple[str, ...], catalog: Catalog, base_id: str | None) -> list[InstalledPack]:
    from modularbase_core.packs.resolve import line_up

    if words:
        return [catalog.find(word) for word in words]
    lineup = line_up(catalog, base_id)
    return [lineup.base, lineup.router, *lineup.routable]


# Any: plain JSON values
def _build(
    chosen: list[InstalledPack],
    machine: Target,
    precisions: Mapping[str, str],
    cache_dir: Path,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    from modularbase_core.device.artefact import ensure_artefacts
    from modularbase_core.host.builds import plan_builds

    builds = plan_builds(chosen, machine, precisions)
    directories = ensure_artefacts(builds, cache_dir, progress)
    return [
        {
            "packs": [one.id for one in chosen if one.manifest.network == build.architecture],
            "directory": str(directory),
            "target": machine.to_dict(),
            "dtype": machine.dtype,
            "precision": build.precision,
        }
        for build, directory in zip(builds, directories, strict=True)
    ]
