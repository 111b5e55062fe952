"""Turn a finished run into a pack directory: weights (int8), routing keys, examples, manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modularbase_core.device.weights import read_background, write_weights
from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Router, build_network
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.keys import background_centres, routing_keys
from modularbase_core.sdk.architecture import Architecture, RouterArchitecture, architecture_to_dict
from modularbase_core.sdk.manifest import (
    EXAMPLES_FILE,
    MANIFEST_FILE,
    ROUTING_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    weights_name,
    write_manifest,
)
from modularbase_core.sdk.pack import Pack
from modularbase_core.train.checkpoints import load_weights, part_of, steps_done
from modularbase_core.train.installed import (
    Installed,
    checkpoint_of,
    complete,
    load_network,
    reading_base,
    reading_router,
)
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.recipe import Recipe, Source, read_recipe
from modularbase_core.train.router import queries, understand_messages
from modularbase_core.train.tokens import load_tokenizer, recipe_controls, template_path

SHOWN_EXAMPLES = 96
LONGEST_EXAMPLE = 300
"""Characters of an example that is shipped: a person reads them, and keys may be made from them again."""
SHIPPED_OTHERS = 512


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
    prefix, architecture = {"base": ("base.", recipe.architecture), "router": ("", recipe.router)}.get(
        recipe.stage, ("pack.", recipe.pack)
    )
    assert architecture is not None
    described = _described(recipe, directory, architecture)
    weights = _finished(recipe, checkpoint_of(runs, recipe.name), prefix, architecture)
    write_weights(directory / WEIGHTS_FILE, {name: value.float().numpy() for name, value in weights.items()})
    if recipe.stage == "base":
        _copy(recipe.folder / recipe.tokenizer, directory / TOKENIZER_FILE)
        if template_path(recipe).exists():
            _copy(template_path(recipe), directory / TEMPLATE_FILE)
    write_manifest(directory, described)  # a router's background is made with what it says
    if recipe.stage == "router" and recipe.others:
        _write_background(
            _Reader(reading_base(recipe, runs, installed), Pack(directory), recipe, data, quiet), directory
        )
    if recipe.examples:
        base, router = reading_base(recipe, runs, installed), reading_router(recipe, runs, installed)
        _write_keys(_Reader(base, router, recipe, data, quiet), directory)
    write_manifest(directory, described)
    return directory


def load_shipped(directory: Path) -> torch.nn.Module:
    """Build the network of a pack directory with its shipped weights, in float32."""
    return load_network(Pack(directory))


def _described(recipe: Recipe, directory: Path, architecture: Architecture) -> Manifest:
    """Return the manifest to write: of the recipe's words, or else of those in the manifest that is there already."""
    if recipe.manifest is not None:
        return Manifest.from_dict({**recipe.manifest, "architecture": architecture_to_dict(architecture)})
    if not (directory / MANIFEST_FILE).exists():
        raise ConfigError(f"recipe {recipe.name!r} has no [manifest] and {directory} no {MANIFEST_FILE}; give either")
    there = Manifest.read(directory / MANIFEST_FILE)
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


def _write_keys(read: _Reader, directory: Path) -> None:
    """Write a pack's routing keys and examples."""
    own, others = read.messages(read.recipe.examples), read.recipe.others
    background = read_background(read.router.routing, read.router_architecture.key_size)
    other_queries = read.queries(read.messages(others)) if others else background.others
    made = routing_keys(read.queries(own), other_queries, background.centres)
    write_weights(directory / ROUTING_FILE, made, quantise=False, metadata={"made_with": read.made_with})
    # as many languages and kinds as there are: the messages come in random order
    shown = [{"prompt": message.text} for message in own if len(message.text) <= LONGEST_EXAMPLE][:SHOWN_EXAMPLES]
    text = json.dumps(shown, ensure_ascii=False, indent=1) + "\n"
    (directory / EXAMPLES_FILE).write_text(text, encoding="utf-8")


def _write_background(read: _Reader, directory: Path) -> None:
    """Write what a router brings to tell packs' messages from: those that belong to no pack."""
    others = read.queries(read.messages(read.recipe.others))
    tensors = {"background": background_centres(others), "others": others[:SHIPPED_OTHERS]}
    write_weights(directory / ROUTING_FILE, tensors, quantise=False)


class _Reader:
    """Base and router as they are shipped, to make queries of a recipe's messages."""

    def __init__(self, base: Pack, router: Pack, recipe: Recipe, data: Path, quiet: bool) -> None:
        self.recipe, self._data, self._quiet = recipe, data, quiet
        self.router, self._base, self._router = router, load_network(base), load_network(router)
        self._tokenizer = load_tokenizer(recipe)
        self._controls = recipe_controls(recipe, self._tokenizer)
        described = router.manifest
        assert isinstance(described.network, RouterArchitecture)
        self.router_architecture = described.network
        self.made_with = weights_name(base.manifest, described)

    def messages(self, sources: tuple[Source, ...]) -> list[Labelled]:
        return read_messages(sources, self._data, self.recipe.folder, self.recipe.seed)

    def queries(self, messages: list[Labelled]) -> NDArray[np.float32]:
        assert isinstance(self._base, Base)
        assert isinstance(self._router, Router)
        texts = [message.text for message in messages]
        understood = understand_messages(self._base, self._tokenizer, texts, quiet=self._quiet, controls=self._controls)
        return queries(self._router, understood)
