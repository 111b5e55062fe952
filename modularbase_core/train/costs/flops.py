"""The arithmetic of a step, counted from shapes."""

from __future__ import annotations

from modularbase_core.sdk.architecture import Blocks
from modularbase_core.train.costs.memory import MESSAGE_ROWS
from modularbase_core.train.costs.parameters import networks_of, networks_of_router, sections_of
from modularbase_core.train.recipe import Recipe


def step_flops(recipe: Recipe, window: int) -> int:
    """Count the floating-point operations of one step in windows of `window` tokens, forward and back.

    A multiplication and an addition are two. What is checkpointed is run forward twice; a teacher is not counted.
    """
    if recipe.stage == "router":
        router = networks_of_router(recipe)[1]
        wide = router.base_hidden_size + router.heads + recipe.batch_tokens  # rows are pooled among all rows
        return 3 * 2 * recipe.batch_tokens * MESSAGE_ROWS * wide * router.width
    base, pack = networks_of(recipe)
    again = int(recipe.checkpoint_activations)
    adapter = 2 * pack.base_hidden_size * pack.blocks.hidden_size
    back = sections_of(recipe)
    flops = base.understanding_layers * _layer_flops(base.blocks, window, back=back["understanding"], again=again)
    flops += pack.layers * _layer_flops(pack.blocks, window, back=back["pack"], again=again)
    flops += base.fusion_layers * _layer_flops(base.blocks, window, back=back["fusion"], again=again)
    flops += (2 + (back["input"] or 0) + (back["output"] or 0)) * adapter
    width = base.blocks.hidden_size + pack.head_rank
    flops += (1 + (back["head"] or 0)) * 2 * base.vocabulary_size * width
    return flops * recipe.batch_tokens


def _layer_flops(b: Blocks, window: int, *, back: int | None, again: int) -> int:
    """Count a layer's operations for one token; back: products on the way back for each forward, None for no way."""
    wide = b.heads * b.head_size
    used = b.experts_per_token if b.experts else 1
    products = b.qkv_size * b.hidden_size + wide * b.hidden_size + b.hidden_size * b.experts
    products += used * b.hidden_size * (b.gate_up_size + b.ffn_size)
    seen = 2 * wide * window  # queries with keys, shares with values: all of a window, masked or not
    if back is None:
        return 2 * (products + seen)
    return 2 * ((1 + back + again) * products + (3 + again) * seen)
