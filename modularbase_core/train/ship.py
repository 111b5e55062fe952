"""Turn a finished run into a pack directory: weights (int8), routing keys, examples, manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from modularbase_core.device.weights import read_weights, write_weights
from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Router, build_network
from modularbase_core.sdk.architecture import Architecture, architecture_to_dict
from modularbase_core.sdk.manifest import (
    EXAMPLES_FILE,
    ROUTING_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    write_manifest,
)
from modularbase_core.train.checkpoints import load_weights, part_of, steps_done
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.router import queries, read_messages, routing_keys, understand_messages

SHOWN_EXAMPLES = 32


def ship_recipe(path: Path, *, data: Path, runs: Path, quiet: bool = False) -> Path:
    """Write the pack directory that the recipe's `ship` names, from the run that it made; return the directory."""
    recipe = read_recipe(path)
    if not recipe.ship or recipe.manifest is None:
        raise ConfigError(f"recipe {recipe.name!r} does not say where to `ship` and with which [manifest]")
    directory = (recipe.folder / recipe.ship).resolve()
    prefix, architecture = {
        "base": ("base.", recipe.architecture),
        "pack": ("pack.", recipe.pack),
        "router": ("", recipe.router),
    }[recipe.stage]
    assert architecture is not None
    weights = _finished(recipe, runs / recipe.name / "checkpoint.pt", prefix, architecture)
    write_weights(directory / WEIGHTS_FILE, {name: value.float().numpy() for name, value in weights.items()})
    if recipe.stage == "base":
        _copy_tokenizer(recipe.folder / recipe.tokenizer, directory / TOKENIZER_FILE)
    if recipe.examples:
        _write_keys(recipe, directory, data, quiet=quiet)
    described: dict[str, Any] = {"schema": 1, **recipe.manifest, "architecture": architecture_to_dict(architecture)}
    write_manifest(directory, Manifest.from_dict(described))
    return directory


def load_shipped(directory: Path) -> torch.nn.Module:
    """Build the network of a pack directory with its shipped weights, in float32."""
    manifest = Manifest.read(directory / "manifest.json")
    network = build_network(manifest.network)
    weights = read_weights(directory / WEIGHTS_FILE, manifest.network)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval().requires_grad_(False)


def _finished(recipe: Recipe, checkpoint: Path, prefix: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    weights = part_of(checkpoint, prefix)
    done = steps_done(checkpoint)
    if done < recipe.steps:
        raise DataError(f"{checkpoint} has {done} of {recipe.steps} steps; finish that run before you ship it")
    load_weights(build_network(architecture), weights, checkpoint)
    return weights


def _copy_tokenizer(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):  # a recipe may read the tokenizer where it ships it
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _write_keys(recipe: Recipe, directory: Path, data: Path, *, quiet: bool) -> None:
    base = load_shipped(recipe.folder / recipe.over / "base")
    router = load_shipped(recipe.folder / recipe.over / "router")
    assert isinstance(base, Base)
    assert isinstance(router, Router)
    tokenizer = Tokenizer.from_file(str(recipe.folder / recipe.tokenizer))
    tokenizer.encode_special_tokens = True
    own, _ = read_messages(recipe.examples, data, recipe.seed)
    others, _ = read_messages(recipe.others, data, recipe.seed)
    own_queries, other_queries = (
        queries(router, understand_messages(base, tokenizer, texts, quiet=quiet)) for texts in (own, others)
    )
    write_weights(directory / ROUTING_FILE, routing_keys(own_queries, other_queries), quantise=False)
    shown = [{"prompt": text} for text in own[:SHOWN_EXAMPLES]]
    text = json.dumps(shown, ensure_ascii=False, indent=1) + "\n"
    (directory / EXAMPLES_FILE).write_text(text, encoding="utf-8")
