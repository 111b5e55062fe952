"""`modularbase route`: which packs would answer a message, with every score, without answering it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.question import check_question, read_question
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import InputError

if TYPE_CHECKING:
    from modularbase_core.turn.stages import Route


@click.command()
@click.argument("message", required=False)
@click.option(
    "--jsonl", type=click.Path(path_type=Path, dir_okay=False), help="Route the `text` of each line; - reads a pipe."
)
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def route(
    message: str | None,
    jsonl: Path | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Show which packs would answer MESSAGE, or what is piped in, and why.

    Loads base and router alone. With --json and --jsonl, prints an object a line.
    """
    if message is not None and jsonl is not None:
        raise click.UsageError("give a message or --jsonl, not both", click.get_current_context())
    config = read_settings(config_file, cache_dir)
    limit = config.max_prompt_bytes
    if jsonl is not None:
        texts: Iterator[str] = _texts(jsonl, limit)
    else:
        texts = iter([read_question(limit) if message is None else check_question(message, "the message", limit)])
    from modularbase_core.host.builtin import hooks_of
    from modularbase_core.host.messages import Messages

    catalog, manager = installed(config)
    with progress_bar(quiet=quiet, lines=False) as progress:
        messages = Messages.open(config, catalog, progress, hooks_of(catalog, manager))
    for text in texts:
        chosen = messages.route(text)
        if as_json:
            print_json({"text": text, **describe(chosen)}, one_line=jsonl is not None)
        elif jsonl is not None:
            click.echo(f"{'+'.join(chosen.ids)}\t{' '.join(text.split())}")
        else:
            click.echo(format_route(chosen))


# Any: plain JSON values
def describe(route: Route) -> dict[str, Any]:
    """Describe a route as plain JSON values: what was chosen with weights and reasons, scores, abstention."""
    return {
        "packs": [
            {"id": one.id, "weight": one.weight, "score": one.score, "reason": one.reason} for one in route.packs
        ],
        "scores": route.scores,
        "abstained": route.abstained,
        "notes": list(route.notes),
    }


def format_route(route: Route) -> str:
    """Lay a route out: a line for each pack with its score, the chosen ones first with the reason."""
    ids = route.ids
    rows = [(one.id, one.score, f"{one.weight:.0%}, {one.reason}") for one in route.packs]
    rest = sorted(route.scores.items(), key=lambda item: -item[1])
    rows += [(pack_id, score, "") for pack_id, score in rest if pack_id not in ids]
    width = max(len(pack_id) for pack_id, _, _ in rows)
    lines = []
    for pack_id, score, told in rows:
        mark, shown = "*" if pack_id in ids else " ", "    " if score is None else f"{score:.2f}"
        lines.append(f"{mark} {pack_id:<{width}}  {shown}  {told}")
    return "\n".join(line.rstrip() for line in (*lines, *(f"note: {note}" for note in route.notes)))


def _texts(path: Path, limit: int) -> Iterator[str]:
    """Open the lines at once, so that a file that is not there is told before anything is loaded."""
    try:
        if str(path) != "-":
            return _read(path.open("rb"), str(path), limit)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines") from error
    if sys.stdin is None:
        raise InputError("standard input is closed; pipe JSON lines in")
    return _read(sys.stdin.buffer, "standard input", limit)


def _read(lines: BinaryIO, name: str, limit: int) -> Iterator[str]:
    with lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{name}:{number}"
                yield check_question(_text(line, where), where, limit)


def _text(line: bytes, where: str) -> str:
    from modularbase_core.sdk.jsonfile import parse_json  # brings pluggy, which help needs not wait for

    try:
        value = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); fix or remove the line") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(f'{where} has no "text"; give an object with one a line')
    text: str = value["text"]
    return text
