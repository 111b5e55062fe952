"""`modularbase eval`: what the installed packs can do, by numbers, and what a change of weights cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.eval.bar import rate_bar
from modularbase_core.cli.eval.tables import compared_tables, result_tables
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ConfigError

if TYPE_CHECKING:
    from modularbase_core.config import EngineConfig
    from modularbase_core.evaluate.settings import EvaluationSettings

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="eval")
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("-p", "--pack", "packs", multiple=True, metavar="ID[,ID]", help="Evaluate these packs, several together.")
@click.option("--no-pack", is_flag=True, help="Evaluate base and general chat alone.")
@click.option("--all-packs", is_flag=True, help="Evaluate no pack, each pack, and as the router chooses.")
@click.option(
    "-m",
    "--metrics",
    metavar="NAME[,NAME]",
    help="Of perplexity, routing, exact, choice, pass@k [default: perplexity, and routing where domains are labelled].",
)
@click.option("--limit", type=int, metavar="N", help="At most so many records of a file, the same ones every time.")
@click.option("--k", "ks", default="1", show_default=True, metavar="K[,K]", help="Of pass@k.")
@click.option("--samples", type=int, metavar="N", help="Answers to a task of pass@k [default: the largest k].")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer.")
@click.option("-t", "--temperature", type=float, help="0 is greedy [default: 0; 0.8 for several answers a task].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option("--code-seconds", type=int, default=3, show_default=True, help="Processor time of a program.")
@click.option("--before", type=_FILE, metavar="FILE", help="Compare with an earlier evaluation.")
@click.option(
    "--forgetting", nargs=2, type=_FILE, metavar="BEFORE AFTER", help="Compare two evaluations, no FILE read."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="For eval.json and answers.jsonl."
)
@click.option("--plot", type=_FILE, metavar="FILE.svg", help="Draw the perplexities, or what changed.")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def evaluate(
    files: tuple[str, ...],
    forgetting: tuple[Path, Path] | None,
    plot: Path | None,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
    **more: Any,  # whatever the other options hold
) -> None:
    """Measure what the installed packs can do, and what a change of weights cost.

    FILEs are JSON lines (or .gz, .xz) of prompt/response, messages or text; plain text and code are read too. A
    record's domain is its field `domain`, or its file's folder or name; DOMAIN=FILE names it.
    """
    if plot is not None and plot.suffix != ".svg":
        raise ConfigError(f"--plot names {plot}, but SVG is what is drawn; name a file that ends in .svg")
    if forgetting is not None:
        if files or more["before"] is not None or more["out"] is not None:
            raise click.UsageError("--forgetting compares two evaluations; leave FILE, --before and --out out")
        _compare(*forgetting, plot, as_json)
    elif not files:
        raise click.UsageError("give a FILE of records to evaluate on, or --forgetting BEFORE AFTER")
    else:
        _evaluate(files, plot, as_json, read_settings(config_file, cache_dir), **more)


def _evaluate(
    files: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
    config: EngineConfig,
    *,
    packs: tuple[str, ...],
    no_pack: bool,
    all_packs: bool,
    before: Path | None,
    out: Path | None,
    quiet: bool,
    **more: Any,  # what the settings of an evaluation are made from
) -> None:
    from modularbase_core.evaluate.cases import read_cases
    from modularbase_core.evaluate.document import document, read_document, write_report, write_text
    from modularbase_core.evaluate.forgetting import forgetting
    from modularbase_core.evaluate.model import Model
    from modularbase_core.evaluate.plot import plot_forgetting, plot_perplexity
    from modularbase_core.evaluate.run import Evaluation
    from modularbase_core.evaluate.selection import select
    from modularbase_core.packs.resolve import line_up

    settings = _settings(**more)
    earlier = read_document(before) if before is not None else None
    catalog, manager = installed(config)
    lineup = line_up(catalog, config.base)
    words = [word.strip() for named in packs for word in named.split(",") if word.strip()]
    rows = select(catalog, lineup, words, none=no_pack, every=all_packs, slots=config.slots)
    sources, cases = read_cases(files, settings.limit)
    with rate_bar(quiet=quiet) as progress, Model(config, catalog, lineup, manager, progress) as model:
        results = Evaluation(model, cases, rows, settings, progress).run()
    described = document(lineup, config, sources, rows, settings, results)
    if earlier is not None:
        described["forgetting"] = forgetting(earlier, described)
    compared = described.get("forgetting")
    if out is not None:
        write_report(out, described, results.answers)
    if plot is not None:
        write_text(plot, plot_forgetting(compared) if compared else plot_perplexity(described))
    if as_json:
        print_json(described)
        return
    click.echo("\n".join(result_tables(described)))
    if compared:
        click.echo("\n" + "\n".join(compared_tables(compared)))
    _tell([*results.notes, *(compared["notes"] if compared else ())])


def _compare(before: Path, after: Path, plot: Path | None, as_json: bool) -> None:
    from modularbase_core.evaluate.document import read_document, write_text
    from modularbase_core.evaluate.forgetting import forgetting
    from modularbase_core.evaluate.plot import plot_forgetting

    compared = forgetting(read_document(before), read_document(after))
    if plot is not None:
        write_text(plot, plot_forgetting(compared))
    if as_json:
        print_json(compared)
        return
    click.echo("\n".join(compared_tables(compared)))
    _tell(compared["notes"])


# Any: numbers, as the options give them
def _settings(metrics: str | None, ks: str, **more: Any) -> EvaluationSettings:
    from modularbase_core.evaluate.settings import METRICS, EvaluationSettings

    try:
        numbers = tuple(sorted({int(word) for word in ks.split(",") if word.strip()}))
    except ValueError as error:
        raise ConfigError(f"k is {ks!r}; use whole numbers, such as 1,10") from error
    names = tuple(dict.fromkeys(word.strip() for word in (metrics or "").split(",") if word.strip()))
    if metrics is not None and not names:
        raise ConfigError(f"--metrics names none; use some of {', '.join(METRICS)}")
    return EvaluationSettings(metrics=names, k=numbers, **more)


def _tell(notes: list[str]) -> None:
    for note in notes:
        click.secho(f"note: {note}", dim=True, err=True)
