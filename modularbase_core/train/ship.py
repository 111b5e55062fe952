"""Turn a finished run into a pack directory: weights, routing keys, examples, manifest."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modularbase_core.device.weights import write_weights
from modularbase_core.errors import ConfigError, DataError, PackError
from modularbase_core.graph.networks import build_network
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import Architecture, architecture_to_dict
from modularbase_core.sdk.manifest import (
    MANIFEST_FILE,
    ROUTING_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    write_manifest,
)
from modularbase_core.sdk.pack import Pack
from modularbase_core.train.asked import messages_asked
from modularbase_core.train.checkpoints import load_weights, part_of, steps_done
from modularbase_core.train.installed import (
    Installed,
    checkpoint_of,
    complete,
    load_network,
    messages_of_neighbours,
    reading_base,
    reading_router,
)
from modularbase_core.train.origin import RENEWING, is_another, origin_of, renewed
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.shipped_keys import (
    Reading,
    write_background,
    write_first_keys,
    write_grown_keys,
    write_keys,
    write_keys_again,
)
from modularbase_core.train.tokens import template_path

NEW_MESSAGES = 2500
"""At most so many messages make the keys of a pack that grows."""


def ship_recipe(
    recipe: Recipe | Path, *, data: Path, runs: Path, quiet: bool = False, installed: Installed = discover
) -> Path:
    """Write the pack directory that the recipe's `ship` names, from the run that it made; return the directory.

    installed: lists the packs that it may stand on.
    """
    if isinstance(recipe, Path):
        recipe = read_recipe(recipe)
    if not recipe.ship:
        raise ConfigError(f"recipe {recipe.name!r} does not say where to `ship`; name the pack's directory")
    directory = (recipe.folder / recipe.ship).resolve()
    recipe = complete(recipe, runs, installed)
    prefix, architecture = ("base.", recipe.architecture) if recipe.learns_base else ("pack.", recipe.pack)
    if recipe.stage == "router":
        prefix, architecture = "", recipe.router
    assert architecture is not None
    described = _described(recipe, directory, architecture, runs, installed)
    weights = _finished(recipe, checkpoint_of(runs, recipe.name), prefix, architecture)
    floats = {name: value.float().numpy() for name, value in weights.items()}
    write_weights(directory / WEIGHTS_FILE, floats, form=recipe.dtype)
    if recipe.learns_base:
        _copy(recipe.folder / recipe.tokenizer, directory / TOKENIZER_FILE)
        if template_path(recipe).exists():
            _copy(template_path(recipe), directory / TEMPLATE_FILE)
    write_manifest(directory, described)  # a router's background is made with what it says
    if recipe.stage == "router" and recipe.others:
        write_background(
            Reading(reading_base(recipe, runs, installed), Pack(directory), recipe, data, quiet), directory
        )
    if recipe.examples:
        base, router = reading_base(recipe, runs, installed), reading_router(recipe, runs, installed)
        beside = [] if recipe.others else messages_of_neighbours(base.manifest.id, described.id, installed)
        write_keys(Reading(base, router, recipe, data, quiet), directory, beside)
    elif recipe.stage in RENEWING:
        _renew_keys(recipe, directory, data=data, runs=runs, quiet=quiet, installed=installed)
    write_manifest(directory, described)
    return directory


def load_shipped(directory: Path, precision: str = "float32") -> torch.nn.Module:
    """Build the network of a pack directory with its shipped weights, see `load_network`."""
    return load_network(Pack(directory), precision)


def _described(
    recipe: Recipe, directory: Path, architecture: Architecture, runs: Path, installed: Installed
) -> Manifest:
    """Return the manifest to write: of the recipe's words, or else of those in the manifest that is there already."""
    if recipe.manifest is not None:
        return Manifest.from_dict({**recipe.manifest, "architecture": architecture_to_dict(architecture)})
    origin = origin_of(recipe, runs) if recipe.stage in RENEWING else None
    if origin is not None and not is_another(directory, origin):
        return renewed(recipe, origin, architecture, runs, installed)
    if not (directory / MANIFEST_FILE).exists():
        raise ConfigError(f"recipe {recipe.name!r} has no [manifest] and {directory} no {MANIFEST_FILE}; give either")
    there = Manifest.read(directory / MANIFEST_FILE)
    if recipe.stage == "chat" and there.type != "system":
        raise ConfigError(
            f"recipe {recipe.name!r} is of stage 'chat', but {directory / MANIFEST_FILE} says type {there.type!r}; "
            "say system there, or use stage 'pack'"
        )
    of_other_weights: dict[str, Any] = {"layers": None, "hidden_size": None, "architecture_key": None, "files": {}}
    return replace(there, architecture=architecture, **of_other_weights)


def _finished(recipe: Recipe, checkpoint: Path, prefix: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    weights = part_of(checkpoint, prefix)
    done = steps_done(checkpoint)
    if done < recipe.steps:
        raise DataError(f"{checkpoint} has {done} of {recipe.steps} steps; finish that run before you ship it")
    load_weights(build_network(architecture), weights, checkpoint)
    return weights


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):  # a recipe may read the tokenizer where it ships it
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _renew_keys(recipe: Recipe, directory: Path, *, data: Path, runs: Path, quiet: bool, installed: Installed) -> None:
    """Make the keys of an aligned or grown pack; where nothing can read its messages, the first chat makes them."""
    origin = origin_of(recipe, runs)
    if origin is None:  # of a run nothing is known but its weights
        return
    if origin.manifest.type == "system" and not is_another(directory, origin):  # it needs no keys to be found
        return
    try:
        base, router = reading_base(recipe, runs, installed), reading_router(recipe, runs, installed)
    except (ConfigError, DataError, PackError):
        if recipe.over:
            raise
        (directory / ROUTING_FILE).unlink(missing_ok=True)
        _copy_examples(origin, directory)
        return
    read = Reading(base, router, recipe, data, quiet)
    if recipe.stage == "align":
        if origin.examples.exists():
            write_keys_again(read, origin, directory)
        return
    new = messages_asked(recipe.mix, data, most=NEW_MESSAGES, seed=recipe.seed)
    if is_another(directory, origin):
        write_first_keys(read, new, directory)
    else:
        write_grown_keys(read, origin, new, directory)


def _copy_examples(origin: Pack, directory: Path) -> None:
    with suppress(FileNotFoundError):
        _copy(origin.examples, directory / origin.examples.name)
