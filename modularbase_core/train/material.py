"""What a recipe learns from: its documents, and the batches of each step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from modularbase_core.train.corpus import read_records
from modularbase_core.train.encoding import Document, Encoder, Material, encode_sources, join
from modularbase_core.train.loop import Batch
from modularbase_core.train.packing import windows
from modularbase_core.train.recall import needle_documents, recall_documents
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.shards import fingerprint, holds_shards
from modularbase_core.train.supply import PART_TOKENS, Supply, is_sharded, shard_sources, shard_texts, together
from modularbase_core.train.tokens import control_ids, recipe_controls


def documents_of(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> Material:
    """Encode what the recipe's mix, recall and needles ask for; shards stay on the disk until a pass comes to them."""
    controls = recipe_controls(recipe, tokenizer)
    sharded = [source for source in recipe.mix if is_sharded(source, data)]
    documents = encode_sources(
        [source for source in recipe.mix if source not in sharded],
        data,
        tokenizer,
        response_only=recipe.response_only,
        seed=recipe.seed,
        controls=controls,
    )
    wanted = fingerprint(tokenizer, controls) if sharded else ""
    shards = [
        opened
        for source in sharded
        for opened in shard_sources(source, data, wanted, response_only=recipe.response_only, seed=recipe.seed)
    ]
    whole: list[Document] = []
    if recipe.recall_tokens:
        texts = together([join(documents), *(source.blocks(0)[0].read() for source in shards)])
        plain = replace(texts, ids=texts.ids[~np.isin(texts.ids, control_ids(tokenizer))])
        end = controls.text_end[-1] if controls.text_end else controls.border
        whole += recall_documents(plain, recipe.recall_tokens, controls.border, end, control=0, seed=recipe.seed)
    if recipe.needle_tokens:
        hay = _hay(recipe, data, tokenizer)
        answers = Encoder(tokenizer, response_only=True, controls=controls)
        whole += needle_documents(hay, recipe.needle_tokens, answers, seed=recipe.seed)
    in_memory = join(documents, whole)
    if not shards:
        return in_memory
    return Supply(in_memory, shards, recipe.seed, max(PART_TOKENS, 8 * recipe.batch_tokens))


def batches_of(recipe: Recipe, documents: Material, begin: int, step: int) -> Iterator[Batch]:
    """Yield the batches of the recipe's steps from `step` on, each phase with its own window length.

    ids [W, N+1] int64 and learn [W, N+1] bool; a batch depends on the recipe and its step alone.
    """
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


def _hay(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return (language, text) of the mix to hide needles in."""
    hay = []
    for name in (name for source in recipe.hay or recipe.mix for name in source.files):
        for language, text in itertools.islice(_texts(data / name, tokenizer), 2000):
            if language != "code" and len(text) > 400:
                hay.append((language, text[:12000]))
    return hay


def _texts(entry: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of files or shards; shards do not keep what language a text says it is in."""
    if not holds_shards(entry):
        for record in read_records(entry):
            yield record.language, record.whole
        return
    for text in shard_texts(entry, tokenizer):
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in text[:400])
        yield ("zh" if chinese > 100 else "en"), text
