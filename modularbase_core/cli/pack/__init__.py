"""`modularbase pack`: what is installed, and what brings packs in, checks them and takes them out again.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

from typing import Final

import click

from modularbase_core.cli.modules import ModuleGroup

COMMANDS: Final = {
    "build": "build:build",
    "check": "verify:check",
    "export": "export:export",
    "fetch": "fetch:fetch",
    "graphs": "graphs:graphs",
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


@click.group(
    cls=ModuleGroup,
    package=__name__,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def pack() -> None:
    """Install, remove, inspect, verify, build and lock packs."""
