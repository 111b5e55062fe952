"""A router before any training: hidden states of a message averaged, spread alike in every direction, and projected.

It learns nothing but what ordinary messages look like, which is also the background that packs' messages are told
from. A recipe of stage router trains a better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from modularbase_core.graph.blocks import Block
from modularbase_core.graph.places import Windows
from modularbase_core.graph.rotary import rotary_table
from modularbase_core.packs.keys import background_centres
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.train.pretrained.layers import Sources

Floats = NDArray[np.float32]

KEY_SIZE: Final = 128
WIDTH: Final = 512
_EPSILON: Final = 1e-6
_ORDINARY_FILE: Final = "ordinary.txt"
_BACKGROUND_SHARE: Final = 2 / 3


def ordinary_messages() -> list[str]:
    """Return messages that belong to no pack in particular, in English and Chinese."""
    return (Path(__file__).with_name(_ORDINARY_FILE)).read_text(encoding="utf-8").splitlines()


def router_shape(hidden_size: int) -> RouterArchitecture:
    """Return the shape of the first router of a base."""
    return RouterArchitecture(base_hidden_size=hidden_size, width=WIDTH, key_size=KEY_SIZE)


def first_router(
    messages: Sequence[Floats], architecture: RouterArchitecture, *, seed: int = 0
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the weights of a first router, and its background (`sdk.parameters.background_shapes`).

    messages: the hidden states [n, E] of each of the ordinary messages.
    """
    rows = np.concatenate(messages)
    rows /= np.sqrt((rows**2).mean(-1, keepdims=True) + _EPSILON)
    spread = 1.0 / np.maximum(rows.std(0), 1e-3 * rows.std())  # a few directions are far larger in most checkpoints
    random = np.random.default_rng(seed)
    inner = random.normal(0.0, architecture.base_hidden_size**-0.5, (architecture.width, architecture.base_hidden_size))
    centre = (rows * spread).mean(0)
    weights = {
        "norm.weight": spread,
        "inner.weight": inner,
        "inner.bias": -inner @ centre,
        "score.weight": np.zeros((architecture.heads, architecture.width)),  # every word counts alike
        "score.bias": np.zeros(architecture.heads),
        "key.weight": random.normal(0.0, architecture.width**-0.5, (architecture.key_size, architecture.width)),
        "key.bias": np.zeros(architecture.key_size),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    pooled = np.stack([_pooled(one, weights) for one in messages])
    # what all messages share says nothing: without it their queries point everywhere
    weights["key.bias"] = -(weights["key.weight"] @ pooled.mean(0))
    queries = pooled @ weights["key.weight"].T + weights["key.bias"]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True) + 1e-12
    first = round(_BACKGROUND_SHARE * len(queries))  # held against packs' keys, so they are not to be centres as well
    return weights, {"background": background_centres(queries[:first]), "others": queries[first:]}


@torch.no_grad()
def understood(sources: Sources, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Floats]:
    """Return the hidden states [n, E] of each text's own tokens, each the first message of a conversation.

    One understanding layer is in memory at a time.
    """
    base, before = sources.base, tokenizer.controls.first
    room = base.window.trained_tokens - len(before)
    ids = [tokenizer.encode(text)[:room] for text in texts]
    known, where = np.unique(np.concatenate([before, *ids]).astype(np.int64), return_inverse=True)
    embedded = torch.from_numpy(sources.checkpoint.take(sources.names("embedding.weight")[0], known))
    where = where[len(before) :]
    ends = np.cumsum([len(one) for one in ids])
    lead = np.searchsorted(known, np.array(before, np.int64))
    states = [embedded[np.concatenate([lead, own])] for own in np.split(where, ends[:-1])]
    rotary = torch.tensor(rotary_table(base.window.trained_tokens, base.blocks.head_size, base.blocks.rope_theta))
    for layer in range(base.understanding_layers):
        with torch.device("meta"):  # its own first weights are never made
            block = Block(base.blocks)
        names = block.state_dict()
        block.load_state_dict(
            {name: torch.from_numpy(sources.whole(f"understanding.layers.{layer}.{name}")) for name in names},
            assign=True,
        )
        states = [block(state, rotary, Windows(1), layer) for state in states]
    return [state[len(before) :].numpy() for state in states]


def _pooled(rows: Floats, weights: dict[str, Floats]) -> Floats:
    """Average a message's rows as `graph.networks.Router` does before its key."""
    normed = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + _EPSILON) * weights["norm.weight"]
    inner = normed @ weights["inner.weight"].T + weights["inner.bias"]
    pooled: Floats = (inner / (1.0 + np.exp(-inner))).mean(0)
    return pooled
