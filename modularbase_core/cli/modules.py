"""A group of commands, each a module of the group's own package, imported when it runs or its help is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from modularbase_core.errors import nearest


class ModuleGroup(click.Group):
    """A click group that imports its commands one by one.

    package: the group's. modules: by command, `module:function` within it.
    """

    # Any: what click gives its own groups
    def __init__(self, *arguments: Any, package: str, modules: Mapping[str, str], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.package, self.modules = package, modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in alphabetical order."""
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.modules:
            return None
        module, function = self.modules[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"{self.package}.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name is answered with the nearest."""
        if args and args[0] not in self.modules and not args[0].startswith("-"):
            self.fail_unknown(ctx, args[0])
        return super().resolve_command(ctx, args)

    def fail_unknown(self, ctx: click.Context, name: str, more: str = "") -> None:
        """End with one sentence about a command that there is not."""
        hint = nearest(name, self.modules)
        ctx.fail(f"no command {name!r}{hint}; `modularbase {self.name} --help` lists them{more}")
