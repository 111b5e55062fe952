"""`modularbase data show`: records as the model will see them, and what of them it learns."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modularbase_core.cli.data.tokenizers import Chosen, choose_tokenizer, only_base
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import settings_options
from modularbase_core.errors import DataError

if TYPE_CHECKING:
    from modularbase_core.train.encoding import Document

OPEN, CLOSE = "⟦", "⟧"
"""Around what counts for the loss, where there is no colour."""


@click.command(short_help="Show records as the model will see them.")
@click.argument("entry", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="PACK|FILE", help="Installed pack, or a tokenizer.json; else the base's.")
@click.option("--records", default=3, show_default=True, type=click.IntRange(1), help="How many to show.")
@click.option("--skip", default=0, show_default=True, type=click.IntRange(0), help="How many to pass over first.")
@click.option("--tokens", default=400, show_default=True, type=click.IntRange(1), help="Tokens shown of each.")
@click.option("--response-only", is_flag=True, help="The loss counts on what the assistant says alone.")
@json_option
@settings_options
def show(
    entry: Path,
    tokenizer: str | None,
    records: int,
    skip: int,
    tokens: int,
    response_only: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Show a few records of FILE (a file, a folder, a quoted glob, or shards) with every token that is put around them.

    What counts for the loss is green, or stands in ⟦ ⟧ where there is no colour.
    """
    from modularbase_core.train.shards import holds_shards

    chosen = choose_tokenizer(tokenizer, config_file, cache_dir) if tokenizer else only_base(config_file, cache_dir)
    if chosen is None:
        raise DataError("no base is installed whose tokenizer could be taken; name one with --tokenizer")
    seen = _of_shards(entry, chosen) if holds_shards(entry) else _of_texts(entry, chosen, response_only)
    found = list(itertools.islice(seen, skip, skip + records))
    if not found:
        raise DataError(f"{entry} has no record after the first {skip}; lower --skip")
    if as_json:
        print_json([one.described(chosen) for one in found])
        return
    coloured = sys.stdout.isatty()
    for number, one in enumerate(found, skip + 1):
        click.secho(f"record {number}: {one.summary()}", bold=True)
        click.echo(f"{one.text(chosen, tokens, coloured=coloured)}\n")
    click.echo(f"tokenizer: {chosen.name}; {'green' if coloured else f'{OPEN} {CLOSE}'} counts for the loss")


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as the model sees it. about: its kind, language and source, as far as they are known."""

    about: Sequence[str]
    document: Document

    def summary(self) -> str:
        """Say in one line what it is."""
        ids, learn = self.document
        counted = sum(learn)
        loss = "all but the first count" if counted == len(ids) - 1 else f"{counted:,} count"
        return ", ".join([*filter(None, self.about), f"{len(ids):,} tokens, {loss} for the loss"])

    def described(self, chosen: Chosen) -> dict[str, object]:
        """Return the same as plain JSON values."""
        ids, learn = self.document
        text = chosen.tokenizer.decode(list(ids), skip_special_tokens=False)
        return {"about": [*filter(None, self.about)], "tokens": len(ids), "learnt": sum(learn), "text": text}

    def text(self, chosen: Chosen, most: int, *, coloured: bool) -> str:
        """Return its first `most` tokens as text, marked where they count."""
        ids, learn = self.document
        runs = itertools.groupby(zip(ids[:most], learn[:most], strict=True), key=lambda one: bool(one[1]))
        out = []
        for counts, run in runs:
            text = chosen.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
            if counts:
                text = click.style(text, fg="green") if coloured else f"{OPEN}{text}{CLOSE}"
            out.append(text)
        rest = len(ids) - most
        return "".join(out) + (f"\n... and {rest:,} tokens more" if rest > 0 else "")


def _of_texts(entry: Path, chosen: Chosen, response_only: bool) -> Iterator[Seen]:
    from modularbase_core.train.corpus import read_records
    from modularbase_core.train.encoding import Encoder

    encoder = Encoder(chosen.tokenizer, response_only=response_only, controls=chosen.controls)
    for record in read_records(entry, lambda told: click.echo(told, err=True)):
        kind = "text" if record.text is not None else f"conversation of {len(record.messages)} messages"
        yield Seen((kind, record.language, record.source), encoder.encode(record))


def _of_shards(folder: Path, chosen: Chosen) -> Iterator[Seen]:
    from modularbase_core.train.shards import fingerprint, map_shards, read_index

    index = read_index(folder)
    if index.fingerprint != fingerprint(chosen.tokenizer, chosen.controls):
        raise DataError(
            f"the shards in {folder} were made with another tokenizer or chat template ({index.tokenizer}) than "
            f"{chosen.name}'s; name it with --tokenizer"
        )
    for shard in map_shards(folder, index, "train"):
        for number in range(shard.shard.documents):
            document = shard.read(number, number + 1)
            yield Seen((shard.shard.name,), (document.ids.tolist(), document.learn.tolist()))
