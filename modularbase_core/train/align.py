"""Align a pack to another base: base and expert layers stay as they are, the pack's adapters learn to fit.

A base that was trained on says the same things in other directions. Where the old base is at hand, least squares
finds most of the way back at once, and the gradient the rest; the start that a few batches like best is taken.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from modularbase_core.errors import ConfigError, DataError, PackError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.sdk.examples import read_examples
from modularbase_core.train.adapters import Fit, turn_input, turn_output
from modularbase_core.train.checkpoints import build_model
from modularbase_core.train.corpus import Record
from modularbase_core.train.encoding import Encoder, Material, join
from modularbase_core.train.installed import Installed
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.learn import learn
from modularbase_core.train.material import documents_of
from modularbase_core.train.origin import keep_origin, origin_of
from modularbase_core.train.packing import document_mask, windows
from modularbase_core.train.parallel import first_process
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.references import base_called, chat_beside
from modularbase_core.train.tokens import load_tokenizer, recipe_controls

PARTS: Final = {"input": ("input_adapter",), "output": ("output_adapter",), "norms": ("norm",)}
"""What the names of parameters contain, for each part of a pack that may learn."""
JUDGED_BATCHES: Final = 4
FITTED_TOKENS: Final = 65536


def run_align(recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed) -> None:
    """Align the pack `start` to `base`; an interrupted run goes on from `checkpoint`.

    Raises ConfigError and DataError, in one sentence, for a recipe, a base or a pack that cannot be aligned.
    """
    if recipe.start is None or recipe.base is None:
        raise ConfigError(
            f"recipe {recipe.name!r}: stage align needs `start`, the pack to align, and `base`, the base to align it to"
        )
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe)
    begin = recipe_controls(recipe, tokenizer).border
    _check_fits(recipe)
    model = build_model(recipe, runs, begin, installed)
    keep_origin(recipe, runs, installed)
    material = documents_of(recipe, data, tokenizer) if recipe.mix else _examples(recipe, runs, tokenizer)
    if not checkpoint.exists():
        _begin(recipe, model, material, runs=runs, quiet=quiet, installed=installed)
    names = [word for part in recipe.learns or ("input",) for word in PARTS[part]]
    for name, value in model.pack.named_parameters():
        value.requires_grad_(any(word in name for word in names))
    loss = Loss(model, compiled=recipe.compile, precision=recipe.precision, balance=recipe.balance)
    learn(recipe, model, loss, material, begin, checkpoint, quiet=quiet)


def _check_fits(recipe: Recipe) -> None:
    base, pack = recipe.architecture, recipe.pack
    if not isinstance(base, BaseArchitecture) or not isinstance(pack, PackArchitecture):
        return  # `build_model` says what is missing
    if pack.base_hidden_size != base.blocks.hidden_size:
        raise DataError(
            f"recipe {recipe.name!r}: {recipe.start} takes hidden states {pack.base_hidden_size} wide, but "
            f"{recipe.base} gives {base.blocks.hidden_size}; only a base as wide as the old one can be aligned to, "
            "train the pack anew"
        )
    if pack.window != base.window:
        raise DataError(
            f"recipe {recipe.name!r}: {recipe.start} sees another window than {recipe.base} "
            f"({pack.window.trained_tokens} against {base.window.trained_tokens} tokens, or other blocks); train the "
            "pack anew"
        )


def _examples(recipe: Recipe, runs: Path, tokenizer: Tokenizer) -> Material:
    """Encode the pack's own examples, where the recipe has no mix; questions without an answer teach as text."""
    origin = origin_of(recipe, runs)
    if origin is None or not origin.examples.exists():
        raise ConfigError(
            f"recipe {recipe.name!r} has no [[mix]], and {recipe.start} brings no examples.json to take for one; give "
            "some of what the pack learnt from"
        )
    examples = read_examples(origin.examples)
    records = []
    for one in examples:
        said = [("user", one.prompt)] + ([("assistant", one.response)] if one.response else [])
        records.append(Record(None, tuple({"role": role, "content": text} for role, text in said), "", ""))
    answered = all(one.response for one in examples)
    encoder = Encoder(
        tokenizer, response_only=recipe.response_only and answered, controls=recipe_controls(recipe, tokenizer)
    )
    documents = encoder.encode_all(records)
    tokens = sum(len(ids) for ids, _ in documents)
    return join(itertools.chain.from_iterable(itertools.repeat(documents, 1 + 4 * recipe.batch_tokens // tokens)))


@torch.no_grad()
def _begin(recipe: Recipe, model: Whole, material: Material, *, runs: Path, quiet: bool, installed: Installed) -> None:
    """Give the pack the start that a few batches like best: as it is, or with adapters turned by least squares."""
    loss = Loss(model, compiled=False, precision=recipe.precision)
    length = recipe.windows[0][1]
    batches = windows(material, length, recipe.batch_tokens // length, begin=model.begin, seed=recipe.seed)
    judged = list(itertools.islice(batches, JUDGED_BATCHES))

    def judge() -> float:
        return sum(loss(ids, learn).item() for ids, learn in judged) / len(judged)

    tried = [("as it is", judge(), _adapters(model.pack))]
    if recipe.old_base is not None:
        told = f"recipe {recipe.name!r}: old_base"
        old, _ = base_called(told, recipe.old_base, recipe, runs, installed)
        _check_tokens(recipe, old, model.base)
        pairs = _outputs(recipe, runs, installed) if "output" in recipe.learns else None
        inner, outer = _fit(model, old, pairs, batches)
        turn_input(model.pack, inner.solve())
        tried.append(("input adapter by least squares", judge(), _adapters(model.pack)))
        if pairs is not None:
            turn_output(model.pack, outer.solve())
            tried.append(("both adapters by least squares", judge(), _adapters(model.pack)))
    name, _, adapters = min(tried, key=lambda one: one[1])
    model.pack.load_state_dict(adapters, strict=False)
    figures = {what: round(value, 4) for what, value, _ in tried}
    if not first_process():
        return
    file = runs / recipe.name / "starts.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"taken": name, "loss": figures}, indent=1) + "\n", encoding="utf-8")
    if not quiet:
        losses = ", ".join(f"{what} {value:.3f}" for what, value in figures.items())
        print(f"loss before the first step: {losses}", file=sys.stderr)


def _fit(
    model: Whole, old: Base, pairs: tuple[Pack, Pack] | None, batches: Iterator[tuple[Tensor, Tensor]]
) -> tuple[Fit, Fit]:
    """Fit the new base's hidden states to the old one's, and the old general chat's output to the new one's."""
    size = model.base.embedding.embedding_dim
    inner, outer, seen = Fit(size), Fit(size), 0
    for ids, _ in batches:
        place = Windows(len(ids), document_mask(ids, model.begin))
        now, before = (base.understand(ids.flatten(), place) for base in (model.base, old))
        inner.add(now, before)
        if pairs is not None:
            old_chat, new_chat = pairs
            outer.add(old_chat(before, place), new_chat(now, place))
        seen += ids.numel()
        if seen >= FITTED_TOKENS:
            break
    return inner, outer


def _outputs(recipe: Recipe, runs: Path, installed: Installed) -> tuple[Pack, Pack] | None:
    """Return the general chats of the old and the new base, which say alike what their fusions take; None of a lack."""
    assert recipe.old_base is not None
    assert recipe.base is not None
    told = f"recipe {recipe.name!r}"
    try:
        return (
            chat_beside(f"{told}: old_base", recipe.old_base, recipe, runs, installed),
            chat_beside(f"{told}: base", recipe.base, recipe, runs, installed),
        )
    except (ConfigError, DataError, PackError):
        return None


def _check_tokens(recipe: Recipe, old: Base, new: Base) -> None:
    if old.embedding.weight.shape != new.embedding.weight.shape:
        raise DataError(
            f"recipe {recipe.name!r}: {recipe.old_base} reads {old.embedding.num_embeddings} tokens "
            f"{old.embedding.embedding_dim} wide, {recipe.base} {new.embedding.num_embeddings} tokens "
            f"{new.embedding.embedding_dim} wide; leave old_base out"
        )


def _adapters(pack: Pack) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pack.state_dict().items() if "adapter" in name}
