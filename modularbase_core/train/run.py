"""Run a recipe: load what it stands on, walk the loop, leave a checkpoint that the next stage and `ship` read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from modularbase_core.packs.catalog import discover
from modularbase_core.text.template import BEGIN, CONTROL_TOKENS, END
from modularbase_core.train.checkpoints import build_model, steps_done
from modularbase_core.train.corpus import read_records
from modularbase_core.train.installed import Installed, checkpoint_of, complete
from modularbase_core.train.language import Loss
from modularbase_core.train.loop import Batch, Schedule, train
from modularbase_core.train.packing import Document, Documents, Encoder, control_id, encode_sources, join, windows
from modularbase_core.train.recall import needle_documents, recall_documents
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
    begin = control_id(tokenizer, BEGIN)
    model = build_model(recipe, runs, begin, installed)
    documents = _documents(recipe, data, tokenizer)
    schedule = Schedule(
        steps=recipe.steps,
        matrix_rate=recipe.matrix_rate,
        other_rate=recipe.other_rate,
        warmup_steps=recipe.warmup_steps,
        decay_share=recipe.decay_share,
    )
    loss = Loss(model, compiled=compiled)
    train(model, loss, lambda step: _batches(recipe, documents, begin, step), schedule, checkpoint, quiet=quiet)
    return checkpoint


def _documents(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> Documents:
    documents = encode_sources(recipe.mix, data, tokenizer, response_only=recipe.response_only, seed=recipe.seed)
    whole: list[Document] = []
    if recipe.recall_tokens:
        begin, end = control_id(tokenizer, BEGIN), control_id(tokenizer, END)
        texts = join(documents)
        whole += recall_documents(
            texts, recipe.recall_tokens, begin, end, control=len(CONTROL_TOKENS), seed=recipe.seed
        )
    if recipe.needle_tokens:
        encoder = Encoder(tokenizer, response_only=recipe.response_only)
        whole += needle_documents(_hay(recipe, data), recipe.needle_tokens, encoder, seed=recipe.seed)
    return join(documents, whole)


def _hay(recipe: Recipe, data: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the mix to hide needles in."""
    hay = []
    for name in (name for source in recipe.hay or recipe.mix for name in source.files):
        for record in itertools.islice(read_records(data / name), 2000):
            text = record.text or "\n".join(message["content"] for message in record.messages)
            if record.language != "code" and len(text) > 400:
                hay.append((record.language, text[:12000]))
    return hay


def _batches(recipe: Recipe, documents: Documents, begin: int, step: int) -> Iterator[Batch]:
    phases = [*recipe.phases(), (recipe.steps, 0)]
    for (first, length), (last, _) in itertools.pairwise(phases):
        if step < last:
            begun = max(step, first)
            stream = windows(
                documents,
                length,
                recipe.batch_tokens // length,
                begin=begin,
                seed=recipe.seed + length,
                start=begun - first,
            )
            for _, batch in zip(range(last - begun), stream, strict=False):
                yield batch
