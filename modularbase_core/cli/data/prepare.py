"""`modularbase data prepare`: shards, from which a recipe learns more than memory holds."""

from __future__ import annotations

import time
from pathlib import Path

import click

from modularbase_core.cli.data.tokenizers import choose_tokenizer
from modularbase_core.cli.progress import byte_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import settings_options


@click.command(short_help="Make shards of more text than memory holds.")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, metavar="PACK|FILE", help="Installed pack, or a tokenizer.json.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the shards.")
@click.option(
    "--shard-tokens",
    default=20_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens of a shard: what an interruption may cost, and what lies in memory meanwhile, some 15 bytes each.",
)
@click.option("--response-only", is_flag=True, help="The loss counts on what the assistant says alone.")
@click.option(
    "--validation",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the records held back in shards of their own.",
)
@click.option("--language", "languages", multiple=True, help="Keep only records that say so; may be repeated.")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def prepare(
    inputs: tuple[Path, ...],
    tokenizer: str,
    out: Path,
    shard_tokens: int,
    response_only: bool,
    validation: float,
    languages: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Tokenise INPUTS (files, folders, quoted globs) into shards; [[mix]] files = ["FOLDER"] learns from them.

    Records that stand there twice are taken once. What was interrupted goes on with the same command.
    """
    from modularbase_core.train.encoding import Encoder
    from modularbase_core.train.preparing import Plan
    from modularbase_core.train.preparing import prepare as make
    from modularbase_core.train.shards import fingerprint

    chosen = choose_tokenizer(tokenizer, config_file, cache_dir)
    plan = Plan(
        inputs=inputs,
        tokenizer=chosen.name,
        fingerprint=fingerprint(chosen.tokenizer, chosen.controls),
        vocabulary_size=max(chosen.tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        shard_tokens=shard_tokens,
        response_only=response_only,
        validation=validation,
        languages=languages,
    )
    encoder = Encoder(chosen.tokenizer, response_only=response_only, controls=chosen.controls)
    begun = time.monotonic()
    try:
        with byte_bar(quiet=quiet or as_json) as progress:
            index = make(plan, out, encoder, progress, lambda sentence: click.echo(sentence, err=True))
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command goes on after the last whole shard in {out}", err=True)
        raise
    report = [
        {
            "split": split,
            "tokens": index.tokens(split),
            "documents": sum(shard.documents for shard in index.of(split)),
            "shards": len(index.of(split)),
        }
        for split in ("train", "valid")
    ]
    if as_json:
        seconds = round(time.monotonic() - begun, 1)
        print_json({"folder": str(out), "splits": report, "duplicates": index.duplicates, "seconds": seconds})
        return
    for line in report:
        if line["tokens"]:
            click.echo("{split}: {tokens:,} tokens of {documents:,} documents, shards: {shards}".format(**line))
    click.echo(f"left out: {index.duplicates:,} records that were there before")
    click.echo(f'to learn from them:\n[[mix]]\nfiles = ["{out.absolute()}"]\ntokens = {index.tokens("train")}')
