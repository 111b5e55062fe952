"""The bytes that a recipe takes: in memory while it trains, and on the disk.

What the passes keep is counted tensor by tensor as torch 2.13 keeps it (see `_kept_by_layer`); what an allocator adds
to that is measured, and each such number says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from modularbase_core.graph.attention import CHUNK_ROWS, WRITTEN_OUT
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.precision import stored_bytes
from modularbase_core.train.costs.parameters import networks_of, networks_of_router, parameters_of, sections_of
from modularbase_core.train.recipe import Recipe

FLOAT: Final = 4
MUON_BYTES: Final = 4
"""Of a parameter: Muon keeps a momentum, AdamW that and a variance."""
ADAMW_BYTES: Final = 8
HEAD_ROWS: Final = 256
"""Rows of logits that exist at once, see `language`."""

PROCESS_BYTES: Final = 300_000_000
COMPILER_BYTES: Final = 110_000_000
"""Of a process before it has a network (torch 2.13 on a CPU), and what torch.compile adds."""
SLACK: Final = {True: 1.25, False: 1.45}
"""How much more the heap grows than tensors hold, compiled and eager: resident bytes of steps of 4,096-16,384 tokens
of the nano base in windows of 256-1,024 (x86-64, glibc); within 15 % there."""
GPU_PROCESS_BYTES: Final = 600_000_000
GPU_SLACK: Final = 1.1
"""The same on a GPU, whose texts stay in the machine's memory: libraries, and an allocator of its own (assumed)."""
MESSAGE_ROWS: Final = 16
"""Hidden states of a message that a router reads, on average (requests of the nano router)."""
READING_BYTES: Final = 60
KEPT_BYTES: Final = 31
"""Of a token of a text: while it is read, and afterwards (12 million tokens of the nano base, 5 of its Python pack)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a process that trains, by what they are for.

    kept: tensors that the passes of one part of a step keep for the way back; checkpointed: those where only what
    enters a layer is kept. passing: tensors in between, logits above all. slack: see SLACK. texts: what the mix takes
    once it is read; reading: while it is. accumulates: whether a step has several parts.
    """

    weights: int
    gradients: int
    optimiser: int
    kept: int
    checkpointed: int
    passing: int
    slack: float
    texts: int
    reading: int
    process: int
    accumulates: bool

    def activations(self, *, checkpointed: bool) -> int:
        """Return what the passes take of memory, with or without checkpointed activations."""
        return round(self.slack * ((self.checkpointed if checkpointed else self.kept) + self.passing))

    def peak(self, *, checkpointed: bool) -> int:
        """Return the most that is held at once."""
        passes = self.activations(checkpointed=checkpointed)
        # without parts, what is kept goes as gradients come
        moving = passes + self.gradients if self.accumulates else max(passes, self.gradients)
        steady = self.weights + self.optimiser + self.texts + moving
        return self.process + max(steady, self.weights + self.reading)


def memory_of(recipe: Recipe, window: int, rows: int | None = None) -> Memory:
    """Count the bytes of a process that trains the recipe in windows of `window` tokens.

    rows: hidden states that a router reads of all its messages; without, as many as MESSAGE_ROWS and its mix make.
    """
    if recipe.stage == "router":
        most = sum(source.tokens for source in recipe.mix) * MESSAGE_ROWS
        return _memory_of_router(recipe, most if rows is None else rows)
    parameters = list(parameters_of(recipe))
    base, pack = networks_of(recipe)
    sections, part = sections_of(recipe), recipe.batch_tokens // recipe.accumulate
    stacks = {
        "understanding": (base.blocks, base.understanding_layers),
        "pack": (pack.blocks, pack.layers),
        "fusion": (base.blocks, base.fusion_layers),
    }
    layers = [(*stack, sections[name]) for name, stack in stacks.items() if sections[name] is not None]
    low = FLOAT if recipe.precision == "fp32" else 2
    gpu = on_gpu(recipe)
    written_out = window <= WRITTEN_OUT and not gpu
    each = [
        part * _kept_by_layer(blocks, window, low, learns=back == 2, compiled=recipe.compile, written_out=written_out)
        for blocks, _, back in layers
    ]
    entering = sum(blocks.hidden_size * FLOAT * part * count for blocks, count, _ in layers)
    head, passing = _head_bytes(base, pack.head_rank, part, low, learns=sections["head"] == 2)
    # weights in `low` bytes, of the layers that are gone back through, and the mask
    fixed = (
        head
        + window * part
        + (low if low < FLOAT else 0)
        * sum(prod(shape) for name, shape, _ in parameters if len(shape) > 1 and _is_of(name, sections))
    )
    tokens = sum(source.tokens for source in (*recipe.mix, *recipe.replay))
    tokens += recipe.recall_tokens + recipe.needle_tokens
    return Memory(
        weights=FLOAT * sum(prod(shape) for _, shape, _ in parameters),
        gradients=FLOAT * sum(prod(shape) for _, shape, changes in parameters if changes),
        optimiser=optimiser_bytes(recipe),
        kept=fixed + sum(size * count for size, (_, count, _) in zip(each, layers, strict=True)),
        checkpointed=fixed + entering + max(each, default=0),
        passing=passing,
        slack=GPU_SLACK if gpu else SLACK[recipe.compile],
        texts=0 if gpu else KEPT_BYTES * tokens,
        reading=0 if gpu else READING_BYTES * tokens,
        process=GPU_PROCESS_BYTES if gpu else PROCESS_BYTES + COMPILER_BYTES * recipe.compile,
        accumulates=recipe.accumulate > 1,
    )


def on_gpu(recipe: Recipe) -> bool:
    """Tell whether the recipe trains on a GPU of this machine."""
    return recipe.device != "cpu" and torch.cuda.is_available()


def optimiser_bytes(recipe: Recipe) -> int:
    """Count the bytes of the optimisers' states."""
    out = 0
    for name, shape, learns in parameters_of(recipe):
        hidden = len(shape) == 2 and "embedding" not in name and ".head." not in name
        muon = hidden and recipe.optimiser == "muon" and recipe.stage != "router"
        out += learns * prod(shape) * (MUON_BYTES if muon else ADAMW_BYTES)
    return out


def checkpoint_bytes(recipe: Recipe) -> int:
    """Count the bytes of a checkpoint; while one is written, there are two. A router's leaves the base out."""
    kept = (prod(shape) for _, shape, learns in parameters_of(recipe) if learns or recipe.stage != "router")
    return FLOAT * sum(kept) + optimiser_bytes(recipe)


def shipped_bytes(recipe: Recipe) -> int:
    """Count the bytes of the weights that the recipe ships, in the form that its `dtype` names."""
    shipped = "router" if recipe.stage == "router" else "base" if recipe.learns_base else "pack"
    named = ((name.partition("."), shape) for name, shape, _ in parameters_of(recipe))
    return sum(stored_bytes(name, shape, recipe.dtype) for (network, _, name), shape in named if network == shipped)


def _memory_of_router(recipe: Recipe, rows: int) -> Memory:
    """Count a router's: `texts` are the hidden states of all messages, twice while they are laid end to end."""
    base, router = networks_of_router(recipe)
    batch = recipe.batch_tokens * MESSAGE_ROWS
    kept = batch * FLOAT * (2 * router.base_hidden_size + 6 * router.width)
    kept += 3 * FLOAT * router.heads * recipe.batch_tokens * batch  # who owns which row
    hidden = rows * (2 * router.base_hidden_size + FLOAT)
    learning = FLOAT * sum(prod(shape) for shape in parameter_shapes(router).values())
    return Memory(
        weights=FLOAT * sum(prod(shape) for shape in parameter_shapes(base).values()) + learning,
        gradients=learning,
        optimiser=optimiser_bytes(recipe),
        kept=kept,
        checkpointed=kept,
        passing=0,
        slack=SLACK[False],
        texts=hidden,
        reading=2 * hidden,
        process=PROCESS_BYTES,
        accumulates=False,
    )


def _kept_by_layer(b: Blocks, window: int, low: int, *, learns: bool, compiled: bool, written_out: bool) -> int:
    """Count the bytes that a layer keeps of one token until the way back comes to it.

    Eager: the stream in float32 and what the two norms make of it; queries, keys and values, attention's result; gate
    and up, their activation and product. Compiled code keeps the stream in `low` bytes and makes activations again.
    What enters a product is kept only where its matrix learns.
    """
    used = b.experts_per_token if b.experts else 1
    kept = used * (b.gate_up_size + b.ffn_size) + 2 * b.hidden_size + b.heads * b.head_size
    if b.experts:
        kept += 2 * used * b.hidden_size  # rows sorted by expert, on the way in and out
    kept += 2 * b.hidden_size if compiled else used * b.ffn_size
    if not learns:
        kept -= 2 * b.hidden_size + b.heads * b.head_size + used * b.ffn_size
    attention = _attention_bytes(b, window, low, compiled=compiled, written_out=written_out)
    return low * kept + attention + (0 if compiled else 16 * b.hidden_size)


def _attention_bytes(b: Blocks, window: int, low: int, *, compiled: bool, written_out: bool) -> int:
    """Count what `graph.attention` keeps of one token in a layer, but for its result."""
    wide, shared = b.heads * b.head_size, b.kv_heads * b.head_size
    if not written_out:  # keys and values for each head, and the mask as numbers, once a layer or once
        return low * (3 * wide + shared + (0 if compiled else window))
    seen = sum(min(last, window) for last in range(CHUNK_ROWS, window + CHUNK_ROWS, CHUNK_ROWS))
    seen = seen * min(CHUNK_ROWS, window) // window
    shares = FLOAT if low == FLOAT else FLOAT + low
    return low * (wide + 2 * shared) + b.heads * seen * shares + (0 if compiled else seen)


def _is_of(name: str, sections: Mapping[str, int | None]) -> bool:
    """Tell whether a parameter is of a layer that is gone back through."""
    network, part = name.split(".")[:2]
    section = "pack" if network == "pack" else part
    return section in ("understanding", "pack", "fusion") and sections[section] is not None


def _head_bytes(base: BaseArchitecture, rank: int, rows: int, low: int, *, learns: bool) -> tuple[int, int]:
    """Count what the loss keeps, the head's input, its gradient and the head's own, and what it needs in passing.

    rank: of what a pack adds to the head, which is put beside it.
    """
    size, words = base.blocks.hidden_size, base.vocabulary_size
    kept = 3 * FLOAT * size * rows + FLOAT * words * (size * learns + (size + rank) * bool(rank))
    copy = 0 if low == FLOAT else low * words * size
    return kept, HEAD_ROWS * words * (FLOAT + 3 * low) + copy
