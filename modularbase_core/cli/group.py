"""The commands, found by name in the entry-point group `modularbase.commands` and loaded when they run.

`modularbase --help` loads our own command modules alone (they import nothing heavy); a plugin's command is
listed with the distribution that brings it, unless plugins are limited to others.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cached_property
from typing import Final

import click
from importlib_metadata import EntryPoint, entry_points, version

from modularbase_core.cli.settings import plugin_limits, plugin_options
from modularbase_core.errors import PluginError, nearest
from modularbase_core.packs.limits import admitted, distribution_of

DISTRIBUTION: Final = "modularbase"
COMMANDS_GROUP: Final = "modularbase.commands"
PLUGINS_GROUP: Final = "modularbase"  # sdk.markers.PROJECT, without pluggy


class CommandGroup(click.Group):
    """A click group whose commands are entry points; ours win over a plugin's of the same name."""

    @cached_property
    def entries(self) -> dict[str, EntryPoint]:
        """The installed commands by name."""
        found = entry_points(group=COMMANDS_GROUP)
        ranked = sorted(found, key=lambda entry: (not _is_ours(entry), distribution_of(entry)))
        return {entry.name: entry for entry in reversed(ranked)}

    def admitted(self, ctx: click.Context) -> dict[str, EntryPoint]:
        """Return the commands that may be loaded: ours, and all of a distribution that the limits name or admit."""
        only = plugin_limits(ctx)
        if only is None:
            return self.entries
        theirs = [entry for entry in self.entries.values() if not _is_ours(entry)]
        sources = {distribution_of(entry) for entry in admitted([*theirs, *entry_points(group=PLUGINS_GROUP)], only)}
        sources.add(DISTRIBUTION)
        return {name: entry for name, entry in self.entries.items() if distribution_of(entry) in sources}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in alphabetical order."""
        return sorted(self.admitted(ctx))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; raises PluginError when a plugin's cannot be loaded."""
        entry = self.admitted(ctx).get(cmd_name)
        if entry is None:
            return None
        source = distribution_of(entry)
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints is no answer
                command = entry.load()
        except Exception as error:  # a plugin's import can raise anything
            if _is_ours(entry):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise PluginError(
                f"the command {cmd_name!r} of {source} cannot be loaded ({reason}); upgrade or uninstall it"
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(f"the command {cmd_name!r} of {source} is no click command; upgrade or uninstall it")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name is answered with the nearest."""
        known = self.admitted(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            if args[0] in self.entries:
                source = distribution_of(self.entries[args[0]])
                ctx.fail(f"the command {args[0]!r} of {source} is not loaded: plugins are limited; admit {source}")
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], known)}; `modularbase --help` lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List our commands with their help and plugins' commands with their distribution."""
        rows = []
        for name in self.list_commands(ctx):
            entry = self.entries[name]
            command = self.get_command(ctx, name) if _is_ours(entry) else None
            rows.append((name, command.get_short_help_str(80) if command else f"from {distribution_of(entry)}"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_ours(entry: EntryPoint) -> bool:
    return distribution_of(entry) == DISTRIBUTION


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"modularbase {version(DISTRIBUTION)}")
        ctx.exit()


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
@plugin_options
def modularbase() -> None:
    """Chat with a small resident base and the packs that pip installed."""
