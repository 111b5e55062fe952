"""`modularbase session`: conversations that are kept under a name, listed, read, carried elsewhere and deleted.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

from typing import Final

import click

from modularbase_core.cli.modules import ModuleGroup

COMMANDS: Final = {
    "delete": "delete:delete",
    "export": "export:export",
    "import": "import_:import_file",
    "list": "list:list_all",
    "show": "show:show",
}
"""Module and function of each command."""


@click.group(
    cls=ModuleGroup,
    package=__name__,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def session() -> None:
    """List, show, export, import and delete conversations that have a name."""
