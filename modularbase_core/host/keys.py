"""The routing keys of a line-up: as packs bring them, or made again where they were made for another base or router.

A pack says in its keys which weights they were made with. Made again from its examples, they are kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.weights import Background, Routing, read_background, read_routing, write_weights
from modularbase_core.errors import BudgetError, InputError, ManifestError, WeightsError
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.packs.keys import METHOD, routing_keys
from modularbase_core.packs.resolve import Lineup
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import ROUTING_FILE, weights_name
from modularbase_core.sdk.tensorfile import read_metadata
from modularbase_core.turn.queries import Queries

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Keys:
    """What was read. refused: packs whose keys cannot be used, and why; remade: those whose keys were made again."""

    routing: dict[str, Routing] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    remade: list[str] = field(default_factory=list)


def read_keys(lineup: Lineup, queries: Queries, cache_dir: Path) -> Keys:
    """Read the keys of every routable pack; one whose keys cannot be read is refused and stops no other.

    Raises WeightsError only for general chat's own.
    """
    out = Keys()
    made_for = made_with(lineup)
    for one in lineup.routable:
        try:
            if _must_be_made(one, made_for):
                out.routing[one.id] = _remade(one, lineup, queries, cache_dir)
                out.remade.append(one.id)
            elif one.pack.routing.exists():
                out.routing[one.id] = read_routing(one.pack.routing, _router(lineup).key_size)
        except (WeightsError, ManifestError, BudgetError) as error:
            if one.id == lineup.general_chat.id:
                raise
            out.refused[one.id] = str(error)
    return out


def made_with(lineup: Lineup) -> str:
    """Name the weights that queries depend on."""
    return weights_name(lineup.base.manifest, lineup.router.manifest)


def routing_of(prompts: list[str], lineup: Lineup, queries: Queries) -> dict[str, Floats]:
    """Make a pack's routing keys from messages that it should answer, against the router's background.

    Raises InputError for no message, and WeightsError when the router brings no background.
    """
    if not prompts:
        raise InputError("no message was given to make routing keys from; give at least one")
    background = background_of(lineup)
    if not len(background.others):
        raise WeightsError(f"router {lineup.router.id!r} brings no background, so no keys can be made; upgrade it")
    return routing_keys(queries.of_texts(prompts), background.others, background.centres)


def background_of(lineup: Lineup) -> Background:
    """Read what the router tells packs' messages from; empty when it brings nothing. Raises WeightsError."""
    size = _router(lineup).key_size
    if not lineup.router.pack.routing.exists():
        return Background(np.empty((0, size), np.float32), np.empty((0, size), np.float32))
    return read_background(lineup.router.pack.routing, size)


def _must_be_made(one: InstalledPack, made_for: str) -> bool:
    """Tell whether a pack that brings examples has no keys, or keys of other weights, perhaps of another size."""
    if not one.pack.examples.exists():
        return False
    return not one.pack.routing.exists() or read_metadata(one.pack.routing).get("made_with", "") not in ("", made_for)


def _remade(one: InstalledPack, lineup: Lineup, queries: Queries, cache_dir: Path) -> Routing:
    prompts = [example.prompt for example in read_examples(one.pack.examples)]
    background = lineup.router.manifest.files.get(ROUTING_FILE, "")
    identity = json.dumps([METHOD, made_with(lineup), background, prompts])
    file = cache_dir / "routing" / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"
    size = _router(lineup).key_size
    with suppress(WeightsError):  # not made yet, or not whole
        return read_routing(file, size)
    made = routing_of(prompts, lineup, queries)
    with suppress(WeightsError):  # a cache that cannot be written costs the time to make them again
        write_weights(file, made, form="fp32", metadata={"made_with": made_with(lineup)})
    return Routing(made["keys"], float(made["scale"][0]), float(made["bias"][0]), made_with(lineup))


def _router(lineup: Lineup) -> RouterArchitecture:
    architecture = lineup.router.manifest.network
    assert isinstance(architecture, RouterArchitecture)
    return architecture
