"""`modularbase train`: the stages of training, what a recipe will take, and several recipes in turn.

Each command is a module of this package, imported when it runs or its help is asked for.
"""

from __future__ import annotations

from typing import Final

import click

from modularbase_core.cli.modules import ModuleGroup

COMMANDS: Final = {
    "align": "align:align",
    "base": "stages:base",
    "chat": "stages:chat",
    "distill": "distill:distill",
    "grow": "grow:grow",
    "pack": "stages:pack",
    "plan": "plan:plan",
    "router": "stages:router",
    "run": "run:run",
}
"""Module and function of each command."""


class TrainGroup(ModuleGroup):
    """The group of `train`, where `train RECIPE.toml ...` is `train run RECIPE.toml ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options that stand first for those of `run`; the group has none but help."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name is answered with the nearest."""
        if args and args[0] not in self.modules:
            if args[0].endswith(".toml"):
                return "run", self.get_command(ctx, "run"), args
            self.fail_unknown(ctx, args[0], ", and a recipe's name ends in .toml")
        return super().resolve_command(ctx, args)


@click.group(
    cls=TrainGroup,
    package=__name__,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def train() -> None:
    """Train from recipes, ship packs, and tell beforehand what a recipe takes."""
