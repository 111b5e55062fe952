"""The commands, found by name in the entry-point group `modularbase.commands` and loaded when they run.

`modularbase --help` loads our own command modules alone (they import nothing heavy); a plugin's command is
listed with the distribution that brings it.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cached_property
from typing import Final

import click
from importlib_metadata import EntryPoint, entry_points, version

from modularbase_core.errors import PluginError, nearest

DISTRIBUTION: Final = "modularbase"
COMMANDS_GROUP: Final = "modularbase.commands"


class CommandGroup(click.Group):
    """A click group whose commands are entry points; ours win over a plugin's of the same name."""

    @cached_property
    def entries(self) -> dict[str, EntryPoint]:
        """The installed commands by name."""
        found = sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: (not _is_ours(entry), _source(entry)))
        return {entry.name: entry for entry in reversed(found)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in alphabetical order."""
        return sorted(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; raises PluginError when a plugin's cannot be loaded."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints is no answer
                command = entry.load()
        except Exception as error:  # a plugin's import can raise anything
            if _is_ours(entry):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise PluginError(
                f"the command {cmd_name!r} of {_source(entry)} cannot be loaded ({reason}); upgrade or uninstall it"
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(
                f"the command {cmd_name!r} of {_source(entry)} is no click command; upgrade or uninstall it"
            )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name is answered with the nearest."""
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], self.entries)}; `modularbase --help` lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List our commands with their help and plugins' commands with their distribution."""
        rows = []
        for name in self.list_commands(ctx):
            entry = self.entries[name]
            command = self.get_command(ctx, name) if _is_ours(entry) else None
            rows.append((name, command.get_short_help_str(80) if command else f"from {_source(entry)}"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_ours(entry: EntryPoint) -> bool:
    return _source(entry) == DISTRIBUTION


def _source(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"modularbase {version(DISTRIBUTION)}")
        ctx.exit()


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
def modularbase() -> None:
    """Chat with a small resident base and the packs that pip installed."""
