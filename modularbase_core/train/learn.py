"""The stages of a language model: what it stands on, what it learns from, and the walk through the loop.

Base with its trunk, general chat and packs are `train_language`; other stages bring a model or a loss of their own
to `learn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from modularbase_core.train.checkpoints import build_model
from modularbase_core.train.encoding import Material
from modularbase_core.train.installed import Installed
from modularbase_core.train.language import Loss
from modularbase_core.train.loop import Settings, train
from modularbase_core.train.material import batches_of, documents_of
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.saving import keys_of
from modularbase_core.train.schedule import Schedule
from modularbase_core.train.tokens import load_tokenizer, recipe_controls


def train_language(
    recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed
) -> None:
    """Train a base, general chat or a pack; an interrupted run goes on from `checkpoint`."""
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe)
    begin = recipe_controls(recipe, tokenizer).border
    model = build_model(recipe, runs, begin, installed)
    documents = documents_of(recipe, data, tokenizer)
    loss = Loss(
        model, compiled=recipe.compile, precision=recipe.precision, balance=recipe.balance, z_loss=recipe.z_loss
    )
    learn(recipe, model, loss, documents, begin, checkpoint, quiet=quiet)


def learn(
    recipe: Recipe,
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    documents: Material,
    begin: int,
    checkpoint: Path,
    *,
    quiet: bool,
) -> None:
    """Walk the loop as the recipe says; what `network` learns is kept in `checkpoint`.

    loss_of(ids [W, N+1], learn [W, N+1]) is a scalar; begin: id of the token that each document starts with.
    """
    start = {name: value.clone() for name, value in network.state_dict().items()} if recipe.kept_start else {}
    train(
        network,
        loss_of,
        lambda step: batches_of(recipe, documents, begin, step),
        schedule_of(recipe),
        checkpoint,
        settings=Settings(**{item.name: getattr(recipe, item.name) for item in fields(Settings)}),
        recipe=keys_of(recipe),
        quiet=quiet,
        finish=partial(blended, start, 1 - recipe.kept_start) if start else None,
    )


def blended(start: Mapping[str, Tensor], share: float, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights on the line from `start` to `learnt`, `share` of the way (WiSE-FT: Wortsman et al., 2022).

    A short run on few kinds of text forgets the others; on the way back, most of what it learnt outlasts most of what
    it forgot.
    """
    return {name: torch.lerp(start[name], value.to(start[name]), share) for name, value in learnt.items()}


def schedule_of(recipe: Recipe) -> Schedule:
    """Return how long the recipe's stage learns, and how fast."""
    return Schedule(
        steps=recipe.steps,
        kind=recipe.schedule,
        matrix_rate=recipe.matrix_rate,
        other_rate=recipe.other_rate,
        warmup_steps=recipe.warmup_steps,
        decay_share=recipe.decay_share,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )
