"""Names and shapes of every parameter of an architecture, known without torch.

What a weight file must hold; a test ties the lists to `graph.build_network(...).state_dict()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modularbase_core.sdk.architecture import (
    Architecture,
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
)

Shape = tuple[int, ...]

QUANTISATION_GROUP: Final = 32
"""Values along the last axis that share one scale."""
LEAST_MAXIMUM: Final = 1e-20
"""What the greatest value of a group of activations counts as at least, so that a scale has a reciprocal."""


def parameter_shapes(architecture: Architecture) -> dict[str, Shape]:
    """List the parameters of a network by their state_dict names, in order."""
    if isinstance(architecture, BaseArchitecture):
        return dict(_base(architecture))
    if isinstance(architecture, PackArchitecture):
        return dict(_pack(architecture))
    return dict(_router(architecture))


def routing_shapes(key_size: int | None = None) -> dict[str, tuple[int | None, ...]]:
    """List the tensors of a pack's routing.safetensors: any number of keys (of any size: None), one scale, one bias."""
    return {"keys": (None, key_size), "scale": (1,), "bias": (1,)}


def optional_routing_shapes(key_size: int | None = None) -> dict[str, tuple[int | None, ...]]:
    """List those that a pack may leave out: what its messages are told from beside the router's background."""
    return {"against": (None, key_size)}


def background_shapes(key_size: int | None = None) -> dict[str, tuple[int | None, ...]]:
    """List the tensors of a router's routing.safetensors: messages of no pack, as centres and as they are."""
    return {"background": (None, key_size), "others": (None, key_size)}


def _base(a: BaseArchitecture) -> Iterator[tuple[str, Shape]]:
    yield "embedding.weight", (a.vocabulary_size, a.blocks.hidden_size)
    yield from _stack("understanding", a.blocks, a.understanding_layers)
    yield from _stack("fusion", a.blocks, a.fusion_layers)
    yield "norm.weight", (a.blocks.hidden_size,)
    if not a.tied_embedding:
        yield "head.weight", (a.vocabulary_size, a.blocks.hidden_size)


def _pack(a: PackArchitecture) -> Iterator[tuple[str, Shape]]:
    yield "input_adapter.weight", (a.blocks.hidden_size, a.base_hidden_size)
    yield from _stack("experts", a.blocks, a.layers)
    yield "output_adapter.weight", (a.base_hidden_size, a.blocks.hidden_size)
    if a.head_rank:
        yield "head.norm.weight", (a.base_hidden_size,)
        yield "head.down.weight", (a.head_rank, a.base_hidden_size)
        yield "head.up.weight", (a.vocabulary_size, a.head_rank)


def _router(a: RouterArchitecture) -> Iterator[tuple[str, Shape]]:
    yield "norm.weight", (a.base_hidden_size,)
    yield "inner.weight", (a.width, a.base_hidden_size)
    yield "inner.bias", (a.width,)
    if a.vocabulary_size:
        yield "lexicon.weight", (a.vocabulary_size, a.width)
    yield "score.weight", (a.heads, a.width)
    yield "score.bias", (a.heads,)
    yield "key.weight", (a.key_size, a.width)
    yield "key.bias", (a.key_size,)


def _stack(stack: str, blocks: Blocks, layers: int) -> Iterator[tuple[str, Shape]]:
    for layer in range(layers):
        for name, shape in _block(blocks):
            yield f"{stack}.layers.{layer}.{name}", shape


def _block(b: Blocks) -> Iterator[tuple[str, Shape]]:
    yield "attention_norm.weight", (b.hidden_size,)
    yield "qkv.weight", (b.qkv_size, b.hidden_size)
    if b.qkv_bias:
        yield "qkv.bias", (b.qkv_size,)
    yield "out.weight", (b.hidden_size, b.heads * b.head_size)
    yield "ffn_norm.weight", (b.hidden_size,)
    if b.experts:
        # a bare nn.Parameter has no `.weight`; state_dict lists it before the child modules
        yield "ffn.gate_up", (b.experts, b.gate_up_size, b.hidden_size)
        yield "ffn.down", (b.experts, b.hidden_size, b.ffn_size)
        yield "ffn.router.weight", (b.experts, b.hidden_size)
    else:
        yield "ffn.gate_up.weight", (b.gate_up_size, b.hidden_size)
        yield "ffn.down.weight", (b.hidden_size, b.ffn_size)
