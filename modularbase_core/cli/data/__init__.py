"""`modularbase data`: what there is to learn from, how the model will see it, and shards of what memory cannot hold.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

from typing import Final

import click

from modularbase_core.cli.modules import ModuleGroup

COMMANDS: Final = {
    "fetch": "fetch:fetch",
    "list": "list:list_sources",
    "prepare": "prepare:prepare",
    "show": "show:show",
}
"""Module and function of each command."""


@click.group(
    cls=ModuleGroup,
    package=__name__,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def data() -> None:
    """Look at training data, make shards of it, and fetch what is public."""
