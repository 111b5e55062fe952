"""What a pack replays where a recipe names nothing: its examples and general chat's, with the answers given now.

Rehearsing one's own answers keeps what the old texts taught when these are gone (Robins, 1995).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer
from tqdm import tqdm

from modularbase_core.errors import DataError, PackError
from modularbase_core.sdk.examples import Example, read_examples
from modularbase_core.text.controls import Controls
from modularbase_core.train.installed import Installed, companion, find_pack
from modularbase_core.train.language import Whole
from modularbase_core.train.origin import origin_of
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Recipe, Teacher
from modularbase_core.train.references import read_pack
from modularbase_core.train.teachers.pair import PairTeacher

ANSWERED: Final = Teacher(kind="modularbase", base="itself", pack="itself", longest=96)
"""How a pack answers."""
_GROUP: Final = 8


def rehearsed(
    recipe: Recipe,
    runs: Path,
    model: Whole,
    tokenizer: Tokenizer,
    controls: Controls,
    installed: Installed,
    *,
    quiet: bool,
) -> list[Record]:
    """Return the examples of the pack `start`, which `model` holds, and of general chat, with answers."""
    origin = origin_of(recipe, runs)
    if origin is None or not origin.examples.exists():
        if not quiet:
            print(f"{recipe.start} brings no examples, so nothing is replayed; give [[replay]]", file=sys.stderr)
        return []
    records = _answered(read_examples(origin.examples), model, recipe.seed, tokenizer, controls, quiet=quiet)
    with suppress(DataError, PackError):  # of a run, or without general chat, its own are all
        chat = companion(find_pack(recipe, "base", runs, installed), "system", installed)
        if chat.id != origin.id and chat.pack.examples.exists():
            # a model of its own, for the one that is to learn keeps what learns in it
            whole = Whole(model.base, read_pack(chat), model.begin, frozen_base=True)
            examples = read_examples(chat.pack.examples)
            records += _answered(examples, whole, recipe.seed, tokenizer, controls, quiet=quiet)
    return records


def _answered(
    examples: Sequence[Example], model: Whole, seed: int, tokenizer: Tokenizer, controls: Controls, *, quiet: bool
) -> list[Record]:
    """Return examples as records; those without an answer get the model's."""
    missing = [one.prompt for one in examples if not one.response]
    teacher = PairTeacher(model, tokenizer, controls, ANSWERED, model.base.embedding.num_embeddings)
    said: dict[str, str] = {}
    with tqdm(total=len(missing), unit="example", disable=quiet, mininterval=5.0) as bar:
        for first in range(0, len(missing), _GROUP):
            group = missing[first : first + _GROUP]
            said |= dict(zip(group, teacher.write(group, seed), strict=True))
            bar.update(len(group))
    pairs = [(one.prompt, one.response or said[one.prompt]) for one in examples]
    return [
        Record(None, ({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), "", "examples")
        for prompt, response in pairs
        if response.strip()
    ]
