"""`modularbase pack verify` and `check`: are packs' files what their manifests say, and do they answer?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.pack.start import check_started, pack_folder
from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, lay_out, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError

if TYPE_CHECKING:
    import pluggy

    from modularbase_core.config import EngineConfig
    from modularbase_core.host import Host
    from modularbase_core.packs.catalog import Catalog, InstalledPack

Progress = Callable[[str, int, int], None]

SMOKE_TOKENS: Final = 4
QUESTION: Final = "Hello!"
"""What a pack without examples is asked."""


@click.command(short_help="Check packs' files and let each answer.")
@click.argument("names", nargs=-1)
@click.option("--no-run", is_flag=True, help="Look at the files alone; generate nothing.")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
@click.pass_context
def verify(
    ctx: click.Context,
    names: tuple[str, ...],
    no_run: bool,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Check the files of packs NAMES (by default: of all) and let each answer; fails when one is unsound."""
    config = read_settings(config_file, cache_dir)
    catalog, manager = installed(config)
    chosen = list({one.id: one for one in map(catalog.find, names)}.values()) if names else list(catalog.packs)
    with progress_bar(quiet=quiet, lines=False) as progress:
        faults = _faults(chosen, progress)
        answers = {} if no_run else _answers(chosen, faults, config, catalog, manager, progress)
    report: dict[str, Any] = {
        "packs": [
            {
                "id": one.id,
                "version": one.manifest.version,
                "fault": faults.get(one.id),
                "ran": None if no_run or one.id not in answers else answers[one.id] is None,
                "run_fault": answers.get(one.id),
            }
            for one in chosen
        ],
        "broken": [{"name": one.pack or one.name, "reason": one.reason} for one in catalog.broken if not names],
    }
    report["sound"] = not report["broken"] and not any(one["fault"] or one["run_fault"] for one in report["packs"])
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(_lines(report)))
    if not report["sound"]:
        ctx.exit(1)


def _faults(chosen: list[InstalledPack], progress: Progress) -> dict[str, str]:
    from modularbase_core.packs.resolve import check_fetched
    from modularbase_core.packs.soundness import check_data

    faults = {}
    for number, one in enumerate(chosen):
        progress(f"checking {one.id}", number, len(chosen))
        try:
            check_data(one.pack)
            check_fetched(one)
        except ModularBaseError as error:
            faults[one.id] = str(error)
    return faults


def _answers(
    chosen: list[InstalledPack],
    faults: dict[str, str],
    config: EngineConfig,
    catalog: Catalog,
    manager: pluggy.PluginManager,
    progress: Progress,
) -> dict[str, str | None]:
    """Let each sound pack answer; return by id what went wrong, None where nothing did.

    Base and router take part in every answer, so they ran when any pack did.
    """
    from modularbase_core.host import build

    sound = [one for one in chosen if one.id not in faults]
    if not sound:
        return {}
    asked = [one for one in sound if one.manifest.type in ("system", "domain")]
    parts = [one for one in sound if one not in asked]
    try:
        with build(config, progress=progress, catalog=catalog, manager=manager) as host:
            answers: dict[str, str | None] = {}
            for number, one in enumerate(asked):
                progress(f"asking {one.id}", number, len(asked))
                answers[one.id] = _ask(host, one)
            running = {host.lineup.base.id, host.lineup.router.id}
            if any(one.id in running for one in parts):
                failed = _ask(host, None)
                answers |= {one.id: failed for one in parts if one.id in running}
            return answers
    except ModularBaseError as error:
        return {one.id: str(error) for one in sound}


def _ask(host: Host, one: InstalledPack | None) -> str | None:
    from modularbase_core.sdk.examples import read_examples
    from modularbase_core.text.template import Message
    from modularbase_core.turn.sample import SamplingConfig
    from modularbase_core.turn.stages import Finished

    question = QUESTION
    try:
        if one is not None and one.pack.examples.is_file():
            question = read_examples(one.pack.examples)[0].prompt
        sampling = SamplingConfig(max_tokens=SMOKE_TOKENS, temperature=0.0)
        events = list(host.chat([Message("user", question)], sampling, packs=[one.id] if one else None))
    except ModularBaseError as error:
        return str(error)
    finally:
        host.close()
    done = [event for event in events if isinstance(event, Finished)]
    return None if done else "no answer came; run `modularbase doctor`"


def _lines(report: dict[str, Any]) -> list[str]:
    rows = [
        (
            one["id"],
            one["version"],
            "FILES UNSOUND" if one["fault"] else "files sound",
            {None: "", True: "answers", False: "CANNOT ANSWER"}[one["ran"]],
        )
        for one in report["packs"]
    ]
    lines = lay_out(rows)
    lines += [f"{one['id']}: {told}" for one in report["packs"] if (told := one["fault"] or one["run_fault"])]
    return [*lines, *(f"{one['name']} is broken: {one['reason']}" for one in report["broken"])] or [
        "no pack is installed"
    ]


@click.command(short_help="Check a pack's data in a folder.")
@click.argument("directory", type=click.Path(path_type=Path), default=Path())
@json_option
def check(directory: Path, as_json: bool) -> None:
    """Check the data of the pack in DIRECTORY (by default: here), a project or the pack's own folder.

    It need not be installed. Manifest, digests, shapes and values are checked.
    """
    from modularbase_core.packs.soundness import check_data
    from modularbase_core.sdk.pack import Pack

    directory = pack_folder(directory)
    pack = Pack(directory)
    check_started(pack)
    manifest = check_data(pack)
    absent = [name for name in manifest.downloads if not (directory / name).is_file()]
    if as_json:
        print_json({"id": manifest.id, "version": manifest.version, "absent": absent})
        return
    click.echo(f"{manifest.id} {manifest.version} is sound ({len(manifest.files)} files, {manifest.size_mb:.1f} MB)")
    for name in absent:
        click.echo(f"not here, so not checked: {name}, from {manifest.downloads[name]}")
