"""Which chat template a recipe writes conversations down with."""

from dataclasses import replace
from pathlib import Path

import pytest
from chatml import CHATML, chatml_tokenizer
from tiny_packs import TOKENIZER, catalog_of, write_tiny_set

from modularbase_core.errors import ManifestError, TokenizerError
from modularbase_core.sdk.template import template_text
from modularbase_core.text.template import BEGIN
from modularbase_core.train.installed import complete
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.tokens import control_ids, load_tokenizer, recipe_controls, template_path


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tokenizer.json").write_text(chatml_tokenizer(), encoding="utf-8")
    return Recipe(name="one", stage="pack", tokens=4096, tokenizer="tokenizer.json", folder=tmp_path)


def test_a_template_beside_the_tokenizer_is_taken(recipe: Recipe) -> None:
    (recipe.folder / "template.json").write_text(template_text(CHATML), encoding="utf-8")
    tokenizer = load_tokenizer(recipe)
    assert recipe_controls(recipe, tokenizer).border == tokenizer.token_to_id("<|endoftext|>")
    assert template_path(recipe) == recipe.folder / "template.json"
    assert len(tokenizer.encode("<|im_end|>").ids) > 1  # in a text it stays text


def test_the_recipes_own_template_goes_before_it(recipe: Recipe) -> None:
    (recipe.folder / "template.json").write_text("{}", encoding="utf-8")
    (recipe.folder / "own.json").write_text(template_text(replace(CHATML, system="")), encoding="utf-8")
    tokenizer = load_tokenizer(recipe)
    with pytest.raises(ManifestError, match=r"template\.json lacks the key 'begin'"):
        recipe_controls(recipe, tokenizer)
    own = replace(recipe, template="own.json")
    assert recipe_controls(own, tokenizer).system == ()
    assert template_path(own) == recipe.folder / "own.json"


def test_without_a_template_it_is_ours(recipe: Recipe) -> None:
    with pytest.raises(TokenizerError, match=r"lacks the control tokens <\|begin\|>"):
        recipe_controls(recipe, load_tokenizer(recipe))
    ours = replace(recipe, tokenizer=str(TOKENIZER))
    tokenizer = load_tokenizer(ours)
    assert recipe_controls(ours, tokenizer).border == tokenizer.token_to_id(BEGIN)
    assert control_ids(tokenizer).tolist() == [0, 1, 2, 3, 4]


def test_an_installed_base_brings_its_template_along(tmp_path: Path) -> None:
    packs = write_tiny_set(tmp_path)
    recipe = Recipe(name="one", stage="pack", tokens=4096, base="tiny-base", start="python_code", windows=((1.0, 128),))
    assert complete(recipe, tmp_path / "runs", lambda: catalog_of(packs)).template == ""
    path = packs["tiny-base"] / "tokenizer/template.json"
    path.write_text(template_text(CHATML), encoding="utf-8")
    assert complete(recipe, tmp_path / "runs", lambda: catalog_of(packs)).template == str(path)
    own = replace(recipe, tokenizer="mine.json")
    assert complete(own, tmp_path / "runs", lambda: catalog_of(packs)).template == ""


def test_a_damaged_tokenizer_is_one_sentence(recipe: Recipe) -> None:
    (recipe.folder / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="name another as `tokenizer`"):
        load_tokenizer(recipe)
