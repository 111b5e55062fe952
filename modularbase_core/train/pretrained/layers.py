"""Which tensors of a checkpoint make which of ours: rows of theirs, one after the other.

The maths is the same (RMSNorm, grouped-query attention with RoPE by halves, SwiGLU), so nothing is computed; queries,
keys and values become one matrix, gate and up another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from modularbase_core.errors import WeightsError, nearest
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.sdk.jsonfile import shown
from modularbase_core.sdk.parameters import Shape
from modularbase_core.train.pretrained.checkpoint import AT_ONCE, Checkpoint, Floats
from modularbase_core.train.pretrained.config import Described

ADAPTERS: Final = ("input_adapter.weight", "output_adapter.weight")
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_OF_BLOCK: Final[Mapping[str, tuple[str, ...]]] = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "out.weight": ("self_attn.o_proj.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "ffn.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "ffn.down.weight": ("mlp.down_proj.weight",),
}
_OF_BASE: Final = {"embedding.weight": _EMBEDDING, "norm.weight": _NORM, "head.weight": _HEAD}
_DERIVED: Final = "rotary_emb.inv_freq"
"""Ends the names of tables that older checkpoints keep; they follow from the configuration."""


class Sources:
    """Our tensors as a checkpoint has them."""

    def __init__(self, checkpoint: Checkpoint, base: BaseArchitecture, pack: PackArchitecture) -> None:
        self.checkpoint, self.base, self.pack = checkpoint, base, pack
        self._first = {  # layer of the checkpoint by stack
            "understanding": 0,
            "experts": base.understanding_layers,
            "fusion": base.understanding_layers + pack.layers,
        }

    def names(self, ours: str) -> tuple[str, ...]:
        """Name the tensors whose rows make up `ours`; none for an adapter."""
        if ours in _OF_BASE:
            return (_OF_BASE[ours],)
        if ours in ADAPTERS:
            return ()
        stack, _, number, of_block = ours.split(".", 3)
        layer = f"model.layers.{self._first[stack] + int(number)}"
        return tuple(f"{layer}.{name}" for name in _OF_BLOCK[of_block])

    def rows(self, ours: str) -> Iterator[Floats]:
        """Yield the values of one of our tensors, some rows at a time; an adapter is the identity."""
        if ours in ADAPTERS:
            yield from _identity(self.pack.base_hidden_size)
        for name in self.names(ours):
            yield from self.checkpoint.rows(name)

    def whole(self, ours: str) -> Floats:
        """Return one of our tensors."""
        return np.concatenate(list(self.rows(ours)))


def check_tensors(checkpoint: Checkpoint, described: Described, directory: Path) -> None:
    """Check that a checkpoint holds every tensor of its configuration, in its shape, and no other; WeightsError."""
    expected = _expected(described)
    for name, shape in expected.items():
        if name not in checkpoint.tensors:
            raise WeightsError(
                f"{directory} lacks the tensor {name!r}, which its config.json calls for; download it again"
            )
        if checkpoint.shape(name) != shape:
            raise WeightsError(
                f"{directory}: {name!r} has shape {list(checkpoint.shape(name))}, but its config.json calls for "
                f"{list(shape)}; download both again"
            )
    for name in checkpoint.tensors:
        # a tied head is the embedding, whether or not it was saved once more
        if name not in expected and not name.endswith(_DERIVED) and not (described.tied and name == _HEAD):
            raise WeightsError(
                f"{directory} holds the tensor {shown(name)}{nearest(name, expected)}, which a Qwen2 of its "
                "config.json does not have; name a plain checkpoint (merge adapters into it first)"
            )


def _expected(described: Described) -> dict[str, Shape]:
    blocks, size = described.blocks, described.blocks.hidden_size
    one = {"q_proj": blocks.heads * blocks.head_size}
    one["k_proj"] = one["v_proj"] = blocks.kv_heads * blocks.head_size
    shapes: dict[str, Shape] = {_EMBEDDING: (described.vocabulary_size, size), _NORM: (size,)}
    if not described.tied:
        shapes[_HEAD] = (described.vocabulary_size, size)
    for layer in range(described.layers):
        of_layer: dict[str, Shape] = {"input_layernorm.weight": (size,), "post_attention_layernorm.weight": (size,)}
        for name, rows in one.items():
            of_layer[f"self_attn.{name}.weight"], of_layer[f"self_attn.{name}.bias"] = (rows, size), (rows,)
        of_layer["self_attn.o_proj.weight"] = (size, one["q_proj"])
        of_layer["mlp.gate_proj.weight"] = of_layer["mlp.up_proj.weight"] = (blocks.ffn_size, size)
        of_layer["mlp.down_proj.weight"] = (size, blocks.ffn_size)
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()})
    return shapes


def _identity(size: int) -> Iterator[Floats]:
    count = max(1, AT_ONCE // size)
    for first in range(0, size, count):
        yield np.eye(min(count, size - first), size, first, dtype=np.float32)
