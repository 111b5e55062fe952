"""`modularbase session`: conversations that are kept under a name, listed, read, carried elsewhere and deleted.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from modularbase_core.errors import nearest

COMMANDS: Final = {
    "delete": "delete:delete",
    "export": "export:export",
    "import": "import_:import_file",
    "list": "list:list_all",
    "show": "show:show",
}
"""Module and function of each command."""


class SessionGroup(click.Group):
    """A click group that imports its commands one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; `modularbase session --help` lists them")
        return super().resolve_command(ctx, args)


@click.group(cls=SessionGroup, context_settings={"help_option_names": ["-h", "--help"]})
def session() -> None:
    """List, show, export, import and delete conversations that have a name."""
