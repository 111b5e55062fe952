"""A recipe's parameters, known from its shapes alone: how many there are, and which of them learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from modularbase_core.errors import ConfigError
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture, RouterArchitecture
from modularbase_core.sdk.parameters import Shape, parameter_shapes
from modularbase_core.train.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a network's parameters: how many there are, and how many of them learn."""

    name: str
    parameters: int
    learning: int


def parts_of(recipe: Recipe) -> list[Part]:
    """Count the parameters of what a recipe's stage has in memory, by part."""
    counts: dict[str, list[int]] = {}
    for name, shape, changes in parameters_of(recipe):
        count = counts.setdefault(_part_of(name), [0, 0])
        count[0] += prod(shape)
        count[1] += prod(shape) * changes
    return [Part(name, *count) for name, count in counts.items()]


def parameters_of(recipe: Recipe) -> Iterator[tuple[str, Shape, bool]]:
    """Yield the names, with their network's before them, and shapes of all parameters, and whether they learn."""
    if recipe.stage == "router":
        base, router = networks_of_router(recipe)
        yield from ((f"base.{name}", shape, False) for name, shape in parameter_shapes(base).items())
        yield from ((f"router.{name}", shape, True) for name, shape in parameter_shapes(router).items())
        return
    whole, pack = networks_of(recipe)
    named = {"base": parameter_shapes(whole), "pack": parameter_shapes(pack)}
    for network, shapes in named.items():
        for part, shape in shapes.items():
            yield f"{network}.{part}", shape, learns(recipe, f"{network}.{part}")


def learns(recipe: Recipe, name: str) -> bool:
    """Tell whether the recipe's stage changes a parameter of base and pack, by its name in `language.Whole`."""
    network, part = name.split(".")[:2]
    if recipe.stage == "align":
        aligned = recipe.learns or ("input",)
        adapter = part.removesuffix("_adapter")
        return network == "pack" and (adapter in aligned or ("norms" in aligned and "norm" in name))
    if not recipe.learns_base:
        return network == "pack"
    if not recipe.learns:
        return True
    if network == "pack":
        return "pack" in recipe.learns
    tied = isinstance(recipe.architecture, BaseArchitecture) and recipe.architecture.tied_embedding
    shared = part == "embedding" and tied and "head" in recipe.learns
    return shared or {"norm": "fusion"}.get(part, part) in recipe.learns


SECTIONS: Final = {
    "embedding": ("base.embedding",),
    "understanding": ("base.understanding.",),
    "input": ("pack.input_adapter",),
    "pack": ("pack.experts.",),
    "output": ("pack.output_adapter", "pack.head."),
    "fusion": ("base.fusion.", "base.norm"),
    "head": ("base.head", "base.embedding"),
}
"""What a token goes through in turn, with what the names of its parameters begin with; a head may be the embedding."""


def sections_of(recipe: Recipe) -> dict[str, int | None]:
    """Tell of each section how many products its way back has for one of the way there.

    2 where its matrices learn, 1 where gradients go through to what learns before them, None where nothing does.
    """
    learning = [(name, shape) for name, shape, changes in parameters_of(recipe) if changes]
    out: dict[str, int | None] = {}
    before = False
    for section, words in SECTIONS.items():
        own = [shape for name, shape in learning if name.startswith(words)]
        before = before or bool(own)
        out[section] = 2 if any(len(shape) > 1 for shape in own) else 1 if before else None
    return out


def networks_of(recipe: Recipe) -> tuple[BaseArchitecture, PackArchitecture]:
    """Return base and pack; raises ConfigError where the recipe leaves one open."""
    base, pack = recipe.architecture, recipe.pack
    if not isinstance(base, BaseArchitecture) or not isinstance(pack, PackArchitecture):
        raise ConfigError(
            f"recipe {recipe.name!r} does not say which networks it trains; give [architecture] and [pack], or "
            "installed packs as `base` and `start`"
        )
    return base, pack


def networks_of_router(recipe: Recipe) -> tuple[BaseArchitecture, RouterArchitecture]:
    """Return base and router; raises ConfigError where the recipe leaves one open."""
    base, router = recipe.architecture, recipe.router
    if not isinstance(base, BaseArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: give [architecture], or an installed base as `base`")
    if not isinstance(router, RouterArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: a router needs its [router] architecture")
    return base, router


def _part_of(name: str) -> str:
    network, part = name.split(".")[:2]
    if network == "router":
        return "router"
    if network == "pack" and part == "head":
        return "head delta"
    return {"norm": "head", "input_adapter": "adapters", "output_adapter": "adapters"}.get(part, part)
