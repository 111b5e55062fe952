"""What a recipe takes from packs: weights to start from, tokenizer, networks, and what reads messages.

A pack is installed, or lies in a folder that the recipe names. A run of that name goes before either, and what the
recipe says before what packs say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from modularbase_core.device.groups import quantise_groups
from modularbase_core.device.weights import read_weights
from modularbase_core.errors import ConfigError, DataError, PackError
from modularbase_core.graph.networks import build_network
from modularbase_core.graph.quantised import quantise_network, scale_name
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.resolve import check_fetched, line_up
from modularbase_core.sdk.architecture import Architecture, PackArchitecture
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import MANIFEST_FILE
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.precision import quantised_bits, quantised_names
from modularbase_core.train.recipe import Recipe

Installed = Callable[[], Catalog]
"""Lists the installed packs; called only where a recipe needs one."""

_TYPES: Final = {"base": ("base",), "old_base": ("base",), "start": ("system", "domain"), "over": ("base",)}
"""The types of packs that a recipe's keys may name."""


def checkpoint_of(runs: Path, name: str) -> Path:
    """Return where the run `name` keeps its checkpoint."""
    return runs / name / "checkpoint.pt"


def complete(recipe: Recipe, runs: Path, installed: Installed) -> Recipe:
    """Return the recipe with the tokenizer and the networks that it leaves out, of the installed packs it names.

    Raises DataError, naming both ways, for what is neither a run nor installed, and ConfigError for what stays open.
    """
    if recipe.stage == "chat" and recipe.base and recipe.start is None:
        recipe = replace(recipe, start=_trunk(recipe, recipe.base, runs, installed))
    base, start = recipe.base, recipe.start
    if base and not (recipe.architecture and recipe.tokenizer) and not checkpoint_of(runs, base).exists():
        one = find_pack(recipe, "base", runs, installed)
        recipe = replace(
            recipe,
            architecture=recipe.architecture or one.manifest.network,
            tokenizer=recipe.tokenizer or str(one.pack.tokenizer),
            template=recipe.template or _template_of(one, recipe),
        )
    if start and recipe.pack is None and not checkpoint_of(runs, start).exists():
        recipe = replace(recipe, pack=find_pack(recipe, "start", runs, installed).manifest.network)
    if not recipe.tokenizer:
        raise ConfigError(f"recipe {recipe.name!r} has no `tokenizer`; give its file, or an installed pack as `base`")
    return recipe


def _trunk(recipe: Recipe, base: str, runs: Path, installed: Installed) -> str:
    """Return the pack that general chat of `base` begins as: the trunk of its run, or its own general chat."""
    if checkpoint_of(runs, base).exists():
        return base
    one = companion(find_pack(recipe, "base", runs, installed), "system", installed)
    return one.id if one.distribution else str(one.pack.directory)


def _template_of(one: InstalledPack, recipe: Recipe) -> str:
    """Return the template that goes with an installed base's tokenizer, none with a tokenizer of the recipe's own."""
    return str(one.pack.template) if not recipe.tokenizer and one.pack.template.exists() else ""


def find_pack(recipe: Recipe, key: str, runs: Path, installed: Installed) -> InstalledPack:
    """Return the pack that the recipe's `key` names, by its folder or as an installed one.

    Raises DataError when there is none of that kind.
    """
    word = getattr(recipe, key)
    return named_pack(f"recipe {recipe.name!r}: {key}", word, _TYPES[key], recipe, runs, installed)


def named_pack(
    told: str, word: str, types: tuple[str, ...], recipe: Recipe, runs: Path, installed: Installed
) -> InstalledPack:
    """Return the pack of one of `types` that is called `word`; raises DataError, which begins with `told`."""
    folder = (recipe.folder / word).resolve()
    try:
        if (folder / MANIFEST_FILE).is_file():
            pack = Pack(folder)
            one = InstalledPack(pack, pack.manifest, "")
        else:
            one = installed().find(word)
    except PackError as error:
        raise DataError(f"{told} is {word!r}, but {_other_way(told, word, recipe, runs)}, and {error}") from error
    if one.manifest.type not in types:
        raise DataError(
            f"{told} is {word!r}, a pack of type {one.manifest.type}; name one of type {' or '.join(types)}"
        )
    return one


def companion(base: InstalledPack, kind: str, installed: Installed) -> InstalledPack:
    """Return the router or the general chat (kind: router, system) of a base: of a folder, what lies beside it.

    Raises PackError when there is none.
    """
    if any(one.pack == base.pack for one in installed().packs):
        lineup = line_up(installed(), base.id)
        return lineup.router if kind == "router" else lineup.general_chat
    for path in sorted(base.pack.directory.parent.glob(f"*/{MANIFEST_FILE}")):
        pack = Pack(path.parent)
        if pack.manifest.type == kind and pack.manifest.base in (None, base.id):
            return InstalledPack(pack, pack.manifest, "")
    what = "router" if kind == "router" else "general chat"
    raise PackError(f"no {what} lies beside {base.pack.directory}; put it there, or install the base")


def weights_of(one: InstalledPack, architecture: Architecture, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Read an installed pack's weights as float32; raises DataError when the recipe describes another network."""
    there = one.manifest.network
    if isinstance(there, PackArchitecture) and isinstance(architecture, PackArchitecture) and not there.head_rank:
        architecture = replace(architecture, head_rank=0, vocabulary_size=0)  # it begins as nothing, see `checkpoints`
    if there != architecture:
        raise DataError(
            f"recipe {recipe.name!r} describes another network than the installed pack {one.id!r} has; "
            f"leave [{'architecture' if one.manifest.type == 'base' else 'pack'}] out, and the pack's is taken"
        )
    return {name: torch.from_numpy(value) for name, value in read_weights(_present(one), architecture).items()}


def reading_base(recipe: Recipe, runs: Path, installed: Installed) -> Pack:
    """Return the base that reads messages for routing keys: of the folder `over`, or an installed one."""
    if (folder := recipe.folder / recipe.over / "base").is_dir() and recipe.over:
        return Pack(folder)
    return _installed_base(recipe, runs, installed).pack


def reading_router(recipe: Recipe, runs: Path, installed: Installed) -> Pack:
    """Return the router that makes routing keys, found as `reading_base` finds the base."""
    if (folder := recipe.folder / recipe.over / "router").is_dir() and recipe.over:
        return Pack(folder)
    router = companion(_installed_base(recipe, runs, installed), "router", installed)
    _present(router)
    return router.pack


def messages_of_neighbours(base: str, own: str, installed: Installed) -> list[str]:
    """Return the example messages that the installed packs of `base` bring, those of the pack `own` left out."""
    beside = [one for one in installed().of_type("domain") if one.manifest.base == base and one.id != own]
    return [
        example.prompt for one in beside if one.pack.examples.is_file() for example in read_examples(one.pack.examples)
    ]


def load_network(pack: Pack, precision: str = "float32") -> torch.nn.Module:
    """Build the network of a pack with its shipped weights, as they are or rounded to what a precision holds.

    Activations stay in float32; where weights are integers they are multiplied as integers, as the kernels do.
    """
    weights = read_weights(pack.weights, pack.manifest.network)
    network = quantise_network(build_network(pack.manifest.network), precision)
    quantised = set(quantised_names(parameter_shapes(pack.manifest.network), precision))
    values: dict[str, NDArray[Any]] = {}
    for name, value in weights.items():
        if name in quantised:
            whole, scale = quantise_groups(value, quantised_bits(precision))
            values[name], values[scale_name(name)] = whole, scale
        else:
            rounds = precision != "float32" and value.ndim > 1
            values[name] = value.astype(np.float16).astype(np.float32) if rounds else value
    network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    return network.eval().requires_grad_(False)


def _installed_base(recipe: Recipe, runs: Path, installed: Installed) -> InstalledPack:
    if not recipe.over and (recipe.base is None or checkpoint_of(runs, recipe.base).exists()):
        raise ConfigError(
            f"recipe {recipe.name!r} has no `over`; name an installed base there, or the folder of a base and a router"
        )
    base = find_pack(recipe, "over" if recipe.over else "base", runs, installed)
    _present(base)
    return base


def _present(one: InstalledPack) -> Path:
    check_fetched(one)
    return one.pack.weights


def _other_way(told: str, word: str, recipe: Recipe, runs: Path) -> str:
    if told.endswith(": over"):
        return f"{recipe.folder / recipe.over} holds no base"
    return f"{checkpoint_of(runs, word)} does not exist (run that stage first, with its own recipe)"
