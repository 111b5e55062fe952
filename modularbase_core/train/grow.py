"""Grow: a pack that is there, or a new one, learns new records beside some of what it knew, and both are measured.

Which pack that is, `decision` says; how its messages are found afterwards, `ship`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from modularbase_core.errors import ConfigError
from modularbase_core.text.controls import Controls
from modularbase_core.train.checkpoints import build_model, load_weights
from modularbase_core.train.encoding import Encoder, records_of
from modularbase_core.train.installed import Installed, checkpoint_of
from modularbase_core.train.kept import Material, divide
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.learn import learn
from modularbase_core.train.material import documents_of
from modularbase_core.train.origin import keep_origin
from modularbase_core.train.parallel import first_process
from modularbase_core.train.perplexity import Likelihood, Scorer
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.rehearsal import rehearsed
from modularbase_core.train.saving import read_checkpoint
from modularbase_core.train.tokens import load_tokenizer, read_tokenizer, recipe_controls

GROWTH_FILE: Final = "growth.json"


def run_grow(recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed) -> None:
    """Train the pack `start` on the mix and what is replayed; an interrupted run goes on from `checkpoint`.

    Raises ConfigError and DataError, in one sentence, for a recipe that names no pack, and data that cannot be read.
    """
    if recipe.start is None or recipe.base is None:
        raise ConfigError(
            f"recipe {recipe.name!r} does not say which pack is to grow; name it as `start` and its base as `base`, or "
            "let `modularbase train grow` decide by the messages"
        )
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe)
    controls = recipe_controls(recipe, tokenizer)
    model = build_model(recipe, runs, controls.border, installed)
    keep_origin(recipe, runs, installed)
    folder = checkpoint.parent

    def examples() -> Sequence[Record]:
        return rehearsed(recipe, runs, model, tokenizer, controls, installed, quiet=quiet)

    kept = divide(recipe, data, folder / "material", examples)
    told = read_growth(runs, recipe.name)
    if "before" not in told:
        told = {"before": measure(model, kept, tokenizer, controls)}
        _write(folder, told)
    learning = replace(recipe, mix=kept.sources(recipe))
    loss = Loss(
        model, compiled=recipe.compile, precision=recipe.precision, balance=recipe.balance, z_loss=recipe.z_loss
    )
    learn(recipe, model, loss, documents_of(learning, data, tokenizer), controls.border, checkpoint, quiet=quiet)
    grown = build_model(recipe, runs, controls.border, installed)
    load_weights(grown, read_checkpoint(checkpoint)["network"], checkpoint)
    _write(folder, {**told, "after": measure(grown, kept, tokenizer, controls)})


def measure(model: Whole, kept: Material, tokenizer: Tokenizer, controls: Controls) -> dict[str, float | None]:
    """Return the perplexity of the records that were kept out, new and replayed; None where there are none."""
    encoder = Encoder(tokenizer, response_only=True, controls=controls)
    longest = 16 * model.base.understanding.rotary.shape[0]
    scorer = Scorer(model.base, {"": model.pack}, encoder.encode, longest=longest)
    out: dict[str, float | None] = {}
    for name in ("new", "replay"):
        (scored,) = scorer.score(kept.kept_out(name), [{"": 1.0}])
        total = sum(scored, Likelihood())
        out[name] = round(total.perplexity, 4) if total.tokens else None
    return out


def read_growth(runs: Path, name: str) -> dict[str, Any]:  # Any: JSON
    """Return what was measured of the run `name`: perplexities of `new` and `replay`, `before` and `after`."""
    path = checkpoint_of(runs, name).with_name(GROWTH_FILE)
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return told


def count_tokens(source: Source, tokenizer: Path) -> int:
    """Count the tokens of a source that is named in full, by a tokenizer.json."""
    read = read_tokenizer(tokenizer)
    texts = [record.whole for record in records_of(source, Path())]
    return sum(len(one.ids) for one in read.encode_batch(texts, add_special_tokens=False))


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    if first_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GROWTH_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
