"""`modularbase bench`: how fast this machine runs what is installed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, lay_out, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options, threads_option
from modularbase_core.config import PRECISIONS

if TYPE_CHECKING:
    from modularbase_core.host.speed import Speed


@click.command(short_help="Measure decode and prefill on this machine, beside its memory's speed.")
@click.option("-p", "--pack", "word", metavar="ID", help="The pack that runs over the base [default: general chat].")
@click.option("--prompt-tokens", metavar="N", type=click.IntRange(1), default=512, show_default=True)
@click.option(
    "--tokens", "steps", metavar="N", type=click.IntRange(1), default=64, show_default=True, help="To decode."
)
@click.option(
    "--batch",
    "batches",
    metavar="N",
    type=click.IntRange(1, 32),
    multiple=True,
    help="Conversations at once; may be repeated [default: 1, 4, 16].",
)
@click.option("--rounds", metavar="N", type=click.IntRange(1), default=5, show_default=True)
@threads_option
@click.option(
    "--precision", type=click.Choice(("auto", *PRECISIONS)), help="Of base and pack, in place of the settings'."
)
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def bench(
    word: str | None,
    prompt_tokens: int,
    steps: int,
    batches: tuple[int, ...],
    rounds: int,
    threads: int | None,
    precision: str | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Measure tokens a second with random tokens: prefill of one prompt, decode of one and more conversations.

    Decode must read every weight once a step, so it is held against how fast memory is read, in the same rounds.
    """
    from modularbase_core.host import Parts
    from modularbase_core.host.builtin import hooks_of
    from modularbase_core.host.speed import measure

    config = read_settings(config_file, cache_dir, threads)
    if precision is not None:
        config = replace(config, base_precision=precision, pack_precision=precision)
    catalog, manager = installed(config)
    with progress_bar(quiet=quiet) as progress:
        parts = Parts(config, catalog, progress, hooks_of(catalog, manager))
    pack_id = parts.lineup.general_chat.id if word is None else catalog.find(word).id
    with progress_bar(quiet=quiet) as progress:
        found = measure(
            parts,
            pack_id,
            prompt_tokens=prompt_tokens,
            steps=steps,
            batches=sorted({1, *(batches or (4, 16))}),
            rounds=rounds,
            done=lambda count, total: progress("rounds", count, total),
        )
    if as_json:
        print_json({"pack": pack_id, **asdict(found), "bandwidth_share": found.bandwidth_share})
    else:
        click.echo("\n".join(_table(found)))


def _table(found: Speed) -> list[str]:
    rows = [("", "tokens/s"), (f"prefill, {found.prompt_tokens} tokens", f"{found.prefill:,.0f}")]
    for batch, speed in found.decode.items():
        rows.append((f"decode, {batch} conversation{'s' if batch > 1 else ''}", f"{speed:,.1f}"))
    source = ", some of it by a cache" if found.bandwidth_share > 1 else ""
    return [
        *lay_out(rows),
        f"A step of one conversation reads {found.step_bytes / 1e6:,.1f} MB, memory gives "
        f"{found.read_bytes_per_second / 1e9:.1f} GB/s: {found.bandwidth_share:.0%} of it is used{source}.",
    ]
