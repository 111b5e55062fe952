"""The flags that training commands share: where things lie, and one for each key of a recipe that holds one value.

The latter are made from the recipe's own fields, so that a new key has its flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from modularbase_core.cli.report import json_option
from modularbase_core.cli.settings import settings_options
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.recipe.keys import CHOICES

# Any, because click decorates commands of every signature
_Command = TypeVar("_Command", bound=Callable[..., Any])

_KINDS: Final = {
    "str": click.STRING,
    "str | None": click.STRING,
    "int": click.INT,
    "float": click.FLOAT,
    "bool": click.BOOL,
    "tuple[str, ...]": click.STRING,
}
_NAMES: Final = {"ship": "ship-to"}
"""Keys whose own name is another flag's."""

HELP: Final[Mapping[str, str]] = {
    "name": "Name of the run; its folder under --runs.",
    "seed": "Of every draw.",
    "tokens": "How many to learn from.",
    "batch_tokens": "Tokens of a step.",
    "response_only": "Whether the loss counts on what the assistant says alone.",
    "recall_tokens": "Tokens of made-up text that repeats itself.",
    "needle_tokens": "Tokens of text with a thing to be found again.",
    "base": "Run or installed pack whose base is used.",
    "start": "Run or installed pack whose weights the pack begins with.",
    "tokenizer": "File of the tokenizer.",
    "template": "File of the chat template; else the one beside the tokenizer.",
    "matrix_rate": "Peak rate of Muon.",
    "other_rate": "Peak rate of AdamW.",
    "warmup_steps": "Steps to the peak rate.",
    "decay_share": "Share of the steps in which the rate falls (wsd).",
    "optimiser": "muon: matrices by Muon, the rest by AdamW.",
    "schedule": "How the rate goes.",
    "weight_decay": "Of matrices.",
    "clip_norm": "Largest norm of the gradient.",
    "kept_start": "Share of the weights it started from in those it ends with.",
    "accumulate": "Parts that a step is walked in, to save memory.",
    "precision": "Of the passes; weights stay fp32.",
    "compile": "Whether torch.compile is used.",
    "checkpoint_activations": "Save memory: run layers again on the way back.",
    "balance": "Weight of the loss that spreads tokens over experts.",
    "z_loss": "Weight of the loss that keeps the experts' logits small.",
    "parallel": "How several processes share the work.",
    "offload": "Whether weights wait in host memory.",
    "device": "Where it runs.",
    "threads": "Of a process; 0 for torch's own choice.",
    "logs": "Who gets the losses too; may be repeated.",
    "ship": "Folder of the pack that --ship writes.",
    "dtype": "How the weights that --ship writes are kept.",
    "learns": "Parts that learn, of stage align or base; may be repeated.",
    "old_base": "Base that an aligned pack was made for, for a closer start.",
    "replay_share": "Share of a grown pack's tokens that is of what it learnt before.",
    "threshold": "Share of messages reaching no pack over which they are a new domain.",
    "over": "Folder of the base and router that read messages for routing keys, or an installed base.",
}
"""What a key's flag says; of a key that is not here, its name says it all."""


class RecipeCommand(click.Command):
    """A command whose help tells the flags of recipe keys apart from its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both kinds of options, each under its heading."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": [], "Keys of the recipe, which go before its own": []}
        own, keys = rows.values()
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                (keys if isinstance(parameter, _KeyOption) else own).append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class _KeyOption(click.Option):
    """The flag of one key of a recipe."""


def key_fields() -> dict[str, Field[Any]]:
    """Return the recipe's fields that have a flag, by key."""
    kept = {item.name: item for item in fields(Recipe) if str(item.type) in _KINDS}
    for name in ("stage", "data"):  # the command's own name, and a flag of its own
        del kept[name]
    return kept


def key_options(command: _Command) -> _Command:
    """Add a flag for each key; `overrides` takes what they give."""
    command = click.option("--eager", is_flag=True, hidden=True, help="Old name of --no-compile.")(command)
    for name, item in reversed(key_fields().items()):
        flag, kind = _NAMES.get(name, name.replace("_", "-")), _KINDS[str(item.type)]
        more: dict[str, Any] = {"default": None, "help": HELP.get(name)}
        if kind is click.BOOL:
            flag = f"--{flag}/--no-{flag}"
        else:
            flag = f"--{flag}"
            more["type"] = click.Choice(CHOICES[name]) if name in CHOICES else kind
            more["multiple"] = str(item.type).startswith("tuple")
        command = click.option(flag, f"key_{name}", cls=_KeyOption, **more)(command)
    return command


def runs_option(command: _Command) -> _Command:
    """Add --runs."""
    return click.option(
        "--runs",
        default="runs",
        show_default=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of checkpoints; an interrupted run resumes from there.",
    )(command)


def data_option(command: _Command) -> _Command:
    """Add --data."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder that the recipe's files are relative to, in place of its own `data`.",
    )(command)


def stage_options(command: _Command) -> _Command:
    """Add all that a stage's command takes besides its recipe; `training.train_recipes` takes what they give."""
    command = settings_options(json_option(key_options(command)))
    command = click.option("--quiet", is_flag=True, help="Print no losses.")(command)
    command = click.option("--ship", is_flag=True, help="Write the pack directory that the recipe names.")(command)
    return data_option(runs_option(command))


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))


def overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that flags gave, with values as TOML would give them.

    Paths on the command line are relative to where the user is, not to the recipe.
    """
    given: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name in key_fields()
        if (value := options[f"key_{name}"]) not in (None, ())
    }
    if options["eager"]:
        given["compile"] = False
    for name, is_path in _PATHS.items():
        if name in given and is_path(Path(given[name])):
            given[name] = str(Path(given[name]).absolute())
    return given


def _is_pack(path: Path) -> bool:
    return (path / "manifest.json").is_file()


_PATHS: Final[Mapping[str, Callable[[Path], bool]]] = {
    "tokenizer": lambda path: True,
    "template": lambda path: True,
    "ship": lambda path: True,
    "over": Path.is_dir,
    "base": _is_pack,
    "start": _is_pack,
    "old_base": _is_pack,
}
"""Keys that name a path, always or where there is such a one, and else a run or an installed pack."""
