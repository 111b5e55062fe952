"""The bytes that a recipe takes: in memory while it trains, and on the disk.

What the passes keep is counted tensor by tensor as torch 2.13 keeps it (see `_kept_by_layer`); what an allocator adds
to that is measured, and each such number says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from modularbase_core.sdk.architecture import BaseArchitecture, Blocks
from modularbase_core.sdk.parameters import QUANTISATION_GROUP, parameter_shapes
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
MESSAGE_ROWS: Final = 16
"""Hidden states of a message that a router reads, on average (requests of the nano router)."""
READING_BYTES: Final = 60
KEPT_BYTES: Final = 31
"""Of a token of a text: while it is read, and afterwards (12 million tokens of the nano base, 5 of its Python pack)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a process that trains, by what they are for.

    activations: what the passes keep of one part of a step, `head` included; checkpointed: the same when only what
    enters a layer is kept. texts: what the mix takes once it is read; reading: while it is.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    checkpointed: int
    head: int
    texts: int
    reading: int
    process: int
    accumulates: bool

    def peak(self, *, checkpointed: bool) -> int:
        """Return the most that is held at once, with or without checkpointed activations."""
        kept = self.checkpointed if checkpointed else self.activations
        # without parts, what is kept goes as gradients come
        moving = kept + self.gradients if self.accumulates else max(kept, self.gradients)
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
    learning = [(name, shape) for name, shape, learns in parameters if learns]
    base, pack = networks_of(recipe)
    rows = recipe.batch_tokens // recipe.accumulate
    low = FLOAT if recipe.precision == "fp32" else 2
    cast = 0 if low == FLOAT else low * sum(prod(shape) for _, shape, _ in parameters if len(shape) > 1)
    sections = sections_of(recipe)
    stacks = {
        "understanding": (base.blocks, base.understanding_layers),
        "pack": (pack.blocks, pack.layers),
        "fusion": (base.blocks, base.fusion_layers),
    }
    layers = [stack for name, stack in stacks.items() if sections[name] is not None]
    by_layer = [_kept_by_layer(blocks, window, low, recipe.compile) * rows for blocks, _ in layers]
    kept = sum(bytes_ * count for bytes_, (_, count) in zip(by_layer, layers, strict=True))
    entering = sum(blocks.hidden_size * FLOAT * rows * count for blocks, count in layers)
    head = _head_bytes(base, rows, low, learns=sections["head"] == 2)
    mask = (1 + low * recipe.compile) * window * rows
    fixed, slack = cast + mask + head, SLACK[recipe.compile]
    tokens = (
        sum(source.tokens for source in (*recipe.mix, *recipe.replay)) + recipe.recall_tokens + recipe.needle_tokens
    )
    return Memory(
        weights=FLOAT * sum(prod(shape) for _, shape, _ in parameters),
        gradients=FLOAT * sum(prod(shape) for _, shape in learning),
        optimiser=optimiser_bytes(recipe),
        activations=round(slack * (kept + fixed)),
        checkpointed=round(slack * (entering + max(by_layer, default=0) + fixed)),
        head=head,
        texts=KEPT_BYTES * tokens,
        reading=READING_BYTES * tokens,
        process=PROCESS_BYTES + COMPILER_BYTES * recipe.compile,
        accumulates=recipe.accumulate > 1,
    )


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
    """Count the bytes of the weights that the recipe ships: int8 with a float16 scale for 32 values, rest float16."""
    shipped = "base" if recipe.stage == "base" else "router" if recipe.stage == "router" else "pack"
    out = 0
    for name, shape, _ in parameters_of(recipe):
        if name.partition(".")[0] == shipped:
            grouped = len(shape) > 1 and shape[-1] % QUANTISATION_GROUP == 0
            out += prod(shape) + 2 * prod(shape) // QUANTISATION_GROUP if grouped else 2 * prod(shape)
    return out


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
        activations=round(SLACK[False] * kept),
        checkpointed=round(SLACK[False] * kept),
        head=0,
        texts=hidden,
        reading=2 * hidden,
        process=PROCESS_BYTES,
        accumulates=False,
    )


def _kept_by_layer(b: Blocks, window: int, low: int, compiled: bool) -> int:
    """Count the bytes that a layer keeps of one token until the way back comes to it.

    Eager: the stream in float32 and what the two norms make of it; queries and keys turned, keys and values for each
    head, attention's result twice; gate and up, their activation and product; the mask once a layer. Compiled code
    keeps the stream in `low` bytes, makes activations again, and shares the mask.
    """
    wide, turned = b.heads * b.head_size, (b.heads + b.kv_heads) * b.head_size
    used = b.experts_per_token if b.experts else 1
    inner = used * (b.gate_up_size + b.ffn_size)
    if b.experts:
        inner += 2 * used * b.hidden_size  # rows sorted by expert, on the way in and out
    if compiled:
        return low * (5 * b.hidden_size + 3 * wide + turned + inner)
    return 16 * b.hidden_size + low * (3 * b.hidden_size + 3 * wide + turned + inner + used * b.ffn_size + window)


def _head_bytes(base: BaseArchitecture, rows: int, low: int, *, learns: bool) -> int:
    """Count what the loss keeps: the head's input and its gradient, some rows of logits, the head's own gradient."""
    size, words = base.blocks.hidden_size, base.vocabulary_size
    return 3 * FLOAT * size * rows + HEAD_ROWS * words * (FLOAT + 3 * low) + words * size * (low + FLOAT * learns)
