"""`modularbase echo`: ask, and see what the plugin's hooks were called with."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.question import check_question
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_pack_echo import Echo


@click.command()
@click.argument("questions", nargs=-1, required=True)
@click.option("--max-tokens", type=int, default=32, show_default=True, help="Longest answer.")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@settings_options
def echo(
    questions: tuple[str, ...], max_tokens: int, quiet: bool, config_file: Path | None, cache_dir: Path | None
) -> None:
    """Ask QUESTIONS one after the other, each by itself, and print what the plugin heard, a line each."""
    from modularbase_core.host import build
    from modularbase_core.text.template import Message
    from modularbase_core.turn.sample import SamplingConfig

    config = read_settings(config_file, cache_dir)
    sampling = SamplingConfig(temperature=0, max_tokens=max_tokens)
    for question in questions:
        check_question(question, "the question", config.max_prompt_bytes)
    catalog, manager = installed(config)
    plugin = next(one for one in manager.get_plugins() if isinstance(one, Echo))
    with progress_bar(quiet=quiet) as progress:
        host = build(config, progress=progress, catalog=catalog, manager=manager)
    with host:
        for question in questions:
            for _ in host.chat([Message("user", question)], sampling):
                pass
            while plugin.heard:
                click.echo(plugin.heard.popleft())
