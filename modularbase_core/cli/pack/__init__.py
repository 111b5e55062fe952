"""`modularbase pack`: what is installed, and what brings packs in, checks them and takes them out again.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from modularbase_core.errors import nearest

COMMANDS: Final = {
    "build": "build:build",
    "check": "verify:check",
    "export": "export:export",
    "fetch": "fetch:fetch",
    "info": "info:info",
    "init": "init:init",
    "install": "install:install",
    "list": "list:list_packs",
    "lock": "lock:lock",
    "pin": "pin:pin",
    "remove": "remove:remove",
    "restore": "lock:restore",
    "start": "start:start",
    "unpin": "pin:unpin",
    "verify": "verify:verify",
}
"""Module and function of each command."""


class PackGroup(click.Group):
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
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; `modularbase pack --help` lists them")
        return super().resolve_command(ctx, args)


@click.group(cls=PackGroup, context_settings={"help_option_names": ["-h", "--help"]})
def pack() -> None:
    """Install, remove, inspect, verify, build and lock packs."""
