"""Routing keys as they are shipped, made of queries by the shipped base and router; and a router's background."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import Background, read_background, read_routing, write_weights
from modularbase_core.graph.networks import Base, Router
from modularbase_core.packs.keys import background_centres, grown_keys, held_back, keys_beside, routing_keys
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.sdk.examples import Example, read_examples
from modularbase_core.sdk.manifest import EXAMPLES_FILE, ROUTING_FILE, weights_name
from modularbase_core.sdk.pack import Pack
from modularbase_core.train.installed import load_network
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.router import queries, understand_messages
from modularbase_core.train.tokens import load_tokenizer, recipe_controls

SHOWN_EXAMPLES = 96
LONGEST_EXAMPLE = 300
"""Characters of an example that is shipped: a person reads them, and keys may be made from them again."""
SHOWN_OF_NEW = 32
"""Examples that a pack gets when it grows; beyond twice SHOWN_EXAMPLES, older ones make room."""
SHIPPED_OTHERS = 512


class Reading:
    """Base and router as they are shipped, to make queries of a recipe's messages."""

    def __init__(self, base: Pack, router: Pack, recipe: Recipe, data: Path, quiet: bool) -> None:
        self.recipe, self._data, self._quiet = recipe, data, quiet
        self.router, self._base, self._router = router, load_network(base), load_network(router)
        self._tokenizer = load_tokenizer(recipe)
        self._controls = recipe_controls(recipe, self._tokenizer)
        described = router.manifest
        assert isinstance(described.network, RouterArchitecture)
        self.key_size = described.network.key_size
        self.made_with = weights_name(base.manifest, described)

    @property
    def background(self) -> Background:
        """What the router tells packs' messages from; raises WeightsError."""
        return read_background(self.router.routing, self.key_size)

    def messages(self, sources: tuple[Source, ...]) -> list[Labelled]:
        """Read messages of the recipe's sources."""
        return read_messages(sources, self._data, self.recipe.folder, self.recipe.seed)

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit queries [n, key_size] of messages."""
        assert isinstance(self._base, Base)
        assert isinstance(self._router, Router)
        understood = understand_messages(
            self._base, self._tokenizer, list(texts), quiet=self._quiet, controls=self._controls
        )
        return queries(self._router, understood)


def write_keys(read: Reading, directory: Path, neighbours: Sequence[str] = ()) -> None:
    """Write a pack's routing keys and examples, of the recipe's `examples` and `others`.

    neighbours: messages of packs beside it, which it leaves to them like the router's own where there are no `others`.
    """
    own, others = [message.text for message in read.messages(read.recipe.examples)], read.recipe.others
    background = read.background
    queries = read.queries(own)
    if neighbours and not others:
        beside, reach = read.queries(neighbours), EngineConfig().threshold
        made = keys_beside(queries, background.others, beside, background.centres, reach)
    else:
        other = read.queries([one.text for one in read.messages(others)]) if others else background.others
        made = routing_keys(queries, other, background.centres)
    _write(made, read, directory)
    # as many languages and kinds as there are: the messages come in random order
    _write_examples(directory, [Example(text) for text in own if len(text) <= LONGEST_EXAMPLE][:SHOWN_EXAMPLES])


def write_keys_again(read: Reading, origin: Pack, directory: Path) -> None:
    """Write the keys of a pack that has moved to another base or router, of the examples that it brings."""
    examples = read_examples(origin.examples)
    background = read.background
    own = read.queries([one.prompt for one in examples])
    _write(routing_keys(own, background.others, background.centres), read, directory)
    _write_examples(directory, examples)


def write_grown_keys(read: Reading, origin: Pack, new: Sequence[str], directory: Path) -> None:
    """Write the keys and examples of a pack that learnt to answer `new` messages too."""
    old = list(read_examples(origin.examples)) if origin.examples.exists() else []
    if origin.routing.exists() and (kept := read_routing(origin.routing, read.key_size)).made_with == read.made_with:
        scale, bias = np.array([kept.scale], np.float32), np.array([kept.bias], np.float32)
        made = {"keys": grown_keys(kept.keys, read.queries(new)), "scale": scale, "bias": bias}
        if kept.against is not None:
            made["against"] = kept.against
    else:
        background = read.background
        own = read.queries([*(one.prompt for one in old), *new])
        made = routing_keys(own, background.others, background.centres)
    _write(made, read, directory)
    known = {one.prompt for one in old}
    more = [Example(text) for text in dict.fromkeys(new) if len(text) <= LONGEST_EXAMPLE and text not in known]
    more = more[:SHOWN_OF_NEW]
    room = 2 * SHOWN_EXAMPLES - len(more)
    if len(old) > room:
        old = random.Random(read.recipe.seed).sample(old, room)
    _write_examples(directory, [*old, *more])


def write_first_keys(read: Reading, new: Sequence[str], directory: Path) -> None:
    """Write the keys and examples of a new pack among others, held back so that it takes next to none of theirs."""
    background = read.background
    made = routing_keys(read.queries(new), background.others, background.centres)
    _write(held_back(made, background.others, background.centres, EngineConfig().threshold), read, directory)
    _write_examples(directory, [Example(text) for text in new if len(text) <= LONGEST_EXAMPLE][:SHOWN_EXAMPLES])


def write_background(read: Reading, directory: Path) -> None:
    """Write what a router brings to tell packs' messages from: those that belong to no pack."""
    messages = [message.text for message in read.messages(read.recipe.others)]
    random.Random(read.recipe.seed).shuffle(messages)  # a few of every source are shipped
    others = read.queries(messages)
    tensors = {"background": background_centres(others), "others": others[:SHIPPED_OTHERS]}
    write_weights(directory / ROUTING_FILE, tensors, form="fp32")


def _write(made: dict[str, NDArray[np.float32]], read: Reading, directory: Path) -> None:
    write_weights(directory / ROUTING_FILE, made, form="fp32", metadata={"made_with": read.made_with})


def _write_examples(directory: Path, examples: Sequence[Example]) -> None:
    if not examples:  # all are too long to be shown
        return
    shown = [{"prompt": one.prompt} | ({"response": one.response} if one.response else {}) for one in examples]
    text = json.dumps(shown, ensure_ascii=False, indent=1) + "\n"
    (directory / EXAMPLES_FILE).write_text(text, encoding="utf-8")
