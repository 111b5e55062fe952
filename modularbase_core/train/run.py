"""Run a recipe: load what it stands on, walk the loop, leave a checkpoint that the next stage and `ship` read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from modularbase_core.packs.catalog import discover
from modularbase_core.text.template import BEGIN, CONTROL_TOKENS, END
from modularbase_core.train.checkpoints import build_model, steps_done
from modularbase_core.train.installed import Installed, checkpoint_of, complete
from modularbase_core.train.language import Loss
from modularbase_core.train.loop import Batch, Schedule, train
from modularbase_core.train.packing import Tokens, control_id, join, pack_sources, windows
from modularbase_core.train.recall import recall_documents
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.router import train_router


def run_recipe(
    path: Path,
    *,
    data: Path,
    runs: Path,
    quiet: bool = False,
    compiled: bool = True,
    installed: Installed = discover,
) -> Path:
    """Train one recipe and return its checkpoint; an interrupted run resumes from there.

    data: the folder the recipe's files are relative to. runs: where each stage keeps `NAME/checkpoint.pt`.
    installed: lists the packs that it may stand on.
    """
    recipe = read_recipe(path)
    checkpoint = checkpoint_of(runs, recipe.name)
    if steps_done(checkpoint) >= recipe.steps:
        return checkpoint
    recipe = complete(recipe, runs, installed)
    if recipe.stage == "router":
        train_router(recipe, data=data, runs=runs, checkpoint=checkpoint, quiet=quiet, installed=installed)
        return checkpoint
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(recipe.folder / recipe.tokenizer))
    model = build_model(recipe, runs, control_id(tokenizer, BEGIN), installed)
    tokens = _tokens(recipe, data, tokenizer)
    schedule = Schedule(
        steps=recipe.steps,
        matrix_rate=recipe.matrix_rate,
        other_rate=recipe.other_rate,
        warmup_steps=recipe.warmup_steps,
        decay_share=recipe.decay_share,
    )
    loss = Loss(model, compiled=compiled)
    train(model, loss, lambda step: _batches(recipe, tokens, step), schedule, checkpoint, quiet=quiet)
    return checkpoint


def _tokens(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> Tokens:
    longest = recipe.windows[-1][1]
    tokens = pack_sources(
        recipe.mix, data, tokenizer, response_only=recipe.response_only, longest=longest, seed=recipe.seed
    )
    if not recipe.recall_tokens:
        return tokens
    begin, end = control_id(tokenizer, BEGIN), control_id(tokenizer, END)
    recalled = join(
        recall_documents(tokens, recipe.recall_tokens, begin, end, control=len(CONTROL_TOKENS), seed=recipe.seed)
    )
    # spread: a recall stretch after each of 400 stretches of the mix
    texts = zip(np.array_split(tokens.ids, 400), np.array_split(recalled.ids, 400), strict=True)
    learns = zip(np.array_split(tokens.learn, 400), np.array_split(recalled.learn, 400), strict=True)
    return Tokens(
        np.concatenate([part for pair in texts for part in pair]),
        np.concatenate([part for pair in learns for part in pair]),
    )


def _batches(recipe: Recipe, tokens: Tokens, step: int) -> Iterator[Batch]:
    phases = [*recipe.phases(), (recipe.steps, 0)]
    for (first, length), (last, _) in itertools.pairwise(phases):
        if step < last:
            begun = max(step, first)
            stream = windows(
                tokens, length, recipe.batch_tokens // length, seed=recipe.seed + length, start=begun - first
            )
            for _, batch in zip(range(last - begun), stream, strict=False):
                yield batch
