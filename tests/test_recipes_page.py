"""docs/recipes.md: every key has its row, with the default and the choices that it has in code."""

import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from modularbase_core.cli.train import COMMANDS
from modularbase_core.train.recipe import Recipe, Source, Teacher, read_recipe
from modularbase_core.train.recipe.keys import CHOICES, LEARNS
from modularbase_core.train.recipe.teacher import NEEDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")


def rows(heading):
    """Yield (key, default or nothing, what it does) of the tables whose first column is called `heading`."""
    for table in re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for line in table.splitlines():
            keys, default, told = (cell.strip() for cell in line.strip("|").split(" |", 2))
            for key in re.findall(r"`(\w+)`", keys):
                yield key, default.strip("`"), told


TABLES = {"key": Recipe, "key of a block": Source, "key of the teacher": Teacher}
EVERY = [(kind, *row) for heading, kind in TABLES.items() for row in rows(heading)]


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_has_a_row_and_every_row_is_a_key(heading):
    keys = [key for key, _, _ in rows(heading)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {item.name for item in fields(TABLES[heading])} - {"folder"}


@pytest.mark.parametrize(("kind", "key", "default", "told"), EVERY)
def test_a_default_told_is_the_default(kind, key, default, told):
    (item,) = (item for item in fields(kind) if item.name == key)
    if not default:
        assert item.default in (MISSING, None, "")
        assert (item.default is MISSING) == ("eeded" in told.replace("needed for", "") or key == "kind")
        return
    said = tomllib.loads(f"key = {default}")["key"]
    plain = [list(pair) for pair in item.default] if key == "windows" else item.default
    assert said == (list(plain) if isinstance(plain, tuple) else plain)
    assert type(said) is not int or isinstance(item.default, int)


@pytest.mark.parametrize("key", CHOICES)
def test_all_that_a_key_may_be_is_told(key):
    (told,) = (told for name, _, told in rows("key") if name == key)
    assert set(re.findall(r"`\"?(\w+)\"?`", told)) >= set(CHOICES[key])


def test_the_kinds_of_teachers_are_told_with_what_they_need():
    (told,) = (told for name, _, told in rows("key of the teacher") if name == "kind")
    for kind, needs in NEEDS.items():
        assert f'`"{kind}"` (needs {" and ".join(f"`{one}`" for one in needs)})' in told


def test_the_stages_that_limit_what_they_learn_are_told():
    (told,) = (told for name, _, told in rows("key") if name == "learns")
    assert set(re.findall(r"stage `(\w+)`", told)) == set(LEARNS)


def test_every_command_has_a_row():
    assert set(re.findall(r"^\| `modularbase train (\w+) RECIPE", PAGE, re.MULTILINE)) == set(COMMANDS)


def test_the_example_is_a_recipe(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "gardening.toml").write_text(example)
    recipe = read_recipe(tmp_path / "gardening.toml")
    assert (recipe.stage, recipe.steps) == ("pack", 244)
    assert recipe.mix[0].files == ("chats.jsonl",)
