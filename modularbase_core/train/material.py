"""What a recipe learns from: its documents, and the batches of each step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from modularbase_core.text.template import BEGIN, CONTROL_TOKENS, END
from modularbase_core.train.corpus import read_records
from modularbase_core.train.loop import Batch
from modularbase_core.train.packing import Document, Documents, Encoder, control_id, encode_sources, join, windows
from modularbase_core.train.recall import needle_documents, recall_documents
from modularbase_core.train.recipe import Recipe


def documents_of(recipe: Recipe, data: Path, tokenizer: Tokenizer) -> Documents:
    """Encode what the recipe's mix, recall and needles ask for."""
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
