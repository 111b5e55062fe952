"""What a recipe learns from: its documents, and the batches of each step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from modularbase_core.train.corpus import read_records
from modularbase_core.train.loop import Batch
from modularbase_core.train.packing import Document, Documents, Encoder, encode_sources, join, windows
from modularbase_core.train.recall import needle_documents, recall_documents
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.tokens import control_ids, recipe_controls


def documents_of(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> Documents:
    """Encode what the recipe's mix, recall and needles ask for."""
    controls = recipe_controls(recipe, tokenizer)
    encoder = Encoder(tokenizer, response_only=recipe.response_only, controls=controls)
    documents = encode_sources(
        recipe.mix, data, tokenizer, response_only=recipe.response_only, seed=recipe.seed, controls=controls
    )
    whole: list[Document] = []
    if recipe.recall_tokens:
        texts = join(documents)
        plain = replace(texts, ids=texts.ids[~np.isin(texts.ids, control_ids(tokenizer))])
        end = controls.text_end[-1] if controls.text_end else controls.border
        whole += recall_documents(plain, recipe.recall_tokens, controls.border, end, control=0, seed=recipe.seed)
    if recipe.needle_tokens:
        whole += needle_documents(_hay(recipe, data), recipe.needle_tokens, encoder, seed=recipe.seed)
    return join(documents, whole)


def batches_of(recipe: Recipe, documents: Documents, begin: int, step: int) -> Iterator[Batch]:
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


def _hay(recipe: Recipe, data: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the mix to hide needles in."""
    hay = []
    for name in (name for source in recipe.hay or recipe.mix for name in source.files):
        for record in itertools.islice(read_records(data / name), 2000):
            text = record.text or "\n".join(message["content"] for message in record.messages)
            if record.language != "code" and len(text) > 400:
                hay.append((record.language, text[:12000]))
    return hay
