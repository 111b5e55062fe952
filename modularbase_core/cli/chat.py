"""`modularbase chat`: ask once, pipe a question in, or hold a conversation."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.question import check_question, read_question
from modularbase_core.cli.report import json_option
from modularbase_core.cli.settings import installed, read_settings, settings_options, threads_option


@click.command()
@click.argument("question", required=False)
@click.option("-p", "--pack", "packs", multiple=True, metavar="ID[,ID]", help="Answer with these packs, unrouted.")
@click.option("-s", "--system", help="A system message.")
@click.option("--session", metavar="NAME", help="Go on with the conversation of this name, or begin it; it is kept.")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read a text of any length first; may be repeated.",
)
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Longest answer.")
@click.option("-t", "--temperature", type=float, default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Keep so many tokens; 0 keeps all.")
@click.option("--top-p", type=float, default=0.9, show_default=True, help="Keep the smallest set reaching this.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop below this share of the best.")
@click.option("--repetition-penalty", type=float, default=1.1, show_default=True, help="1 is none.")
@click.option("--presence-penalty", type=float, default=0.0, show_default=True)
@click.option("--frequency-penalty", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@click.option(
    "--logprobs",
    type=click.IntRange(0, 100),
    metavar="N",
    help="With --json: each token's logprob and the N (to 100) likeliest.",
)
@threads_option
@click.option("--quiet", is_flag=True, help="Show the answer alone: neither packs nor progress.")
@json_option
@settings_options
def chat(
    question: str | None,
    packs: tuple[str, ...],
    system: str | None,
    session: str | None,
    files: tuple[Path, ...],
    threads: int | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
    **sampling: float | int | tuple[str, ...] | None,
) -> None:
    """Answer QUESTION, or what is piped in, or else talk.

    The packs that answer are shown on standard error.
    """
    from modularbase_core import host as hosts
    from modularbase_core.cli.conversation import Conversation
    from modularbase_core.turn.sample import SamplingConfig

    if sampling["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json; add it", click.get_current_context())
    config = read_settings(config_file, cache_dir, threads)
    chosen = SamplingConfig(**sampling)  # type: ignore[arg-type]  # click gives each option its type
    if question is None and not (sys.stdin and sys.stdin.isatty()):
        question = read_question(config.max_prompt_bytes)
    elif question is not None:
        question = check_question(question, "the question", config.max_prompt_bytes)
    if system is not None:
        check_question(system, "the system message", config.max_prompt_bytes)
    forced = [word.strip() for words in packs for word in words.split(",") if word.strip()]
    catalog, manager = installed(config)
    with progress_bar(quiet=quiet) as progress:
        host = hosts.build(config, progress=progress, catalog=catalog, manager=manager)
    with host:
        conversation = Conversation(
            host,
            chosen,
            packs=[host.catalog.find(word).id for word in forced] or None,
            system=system,
            max_prompt_bytes=config.max_prompt_bytes,
            as_json=as_json,
            quiet=quiet,
        )
        conversation.tell_broken()
        if session is not None:
            conversation.resume(session)
        for file in files:
            conversation.read(file)
        if question is not None:
            conversation.ask(question)
        else:
            conversation.talk()
