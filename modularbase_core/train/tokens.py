"""A recipe's tokenizer, and the ids that its chat template puts around texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modularbase_core.errors import TokenizerError
from modularbase_core.sdk.template import ChatTemplate, read_template
from modularbase_core.text.controls import Controls, controls_of, template_beside
from modularbase_core.text.template import OURS
from modularbase_core.train.recipe import Recipe


def load_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the recipe's tokenizer.json; what looks like a control token in a text stays text."""
    return read_tokenizer(recipe.folder / recipe.tokenizer)


def read_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, with which what looks like a control token in a text stays text."""
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of damage
        raise TokenizerError(f"cannot read the tokenizer {path} ({error}); name another as `tokenizer`") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def template_path(recipe: Recipe) -> Path:
    """Return where the recipe's chat template lies, if there is one: where it says, or else beside the tokenizer."""
    return recipe.folder / (recipe.template or Path(recipe.tokenizer).with_name("template.json"))


def recipe_controls(recipe: Recipe, tokenizer: Tokenizer) -> Controls:
    """Return the ids of the recipe's chat template; raises ManifestError and TokenizerError."""
    tokenizer_path = recipe.folder / recipe.tokenizer
    template = read_template(template_path(recipe)) if recipe.template else template_beside(tokenizer_path)
    return controls_of(tokenizer, template, str(tokenizer_path))


def controls_in(tokenizer: Tokenizer, template: ChatTemplate = OURS) -> Controls:
    """Return the ids of a template in a tokenizer, of ours unless told; raises TokenizerError."""
    return controls_of(tokenizer, template, "at hand")


def control_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """List the ids that stand for no text."""
    added = tokenizer.get_added_tokens_decoder()
    return np.array(sorted(number for number, token in added.items() if token.special), np.int64)
