"""docs/settings.md: every setting has its row, with the default that it has in code, and the example is valid."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from modularbase_core.config import EngineConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(?: `([^`]+)`)? \|", PAGE, re.MULTILINE))


def test_every_setting_has_a_row_and_every_row_is_a_setting():
    assert sorted(ROWS) == sorted(item.name for item in fields(EngineConfig))


@pytest.mark.parametrize("key", [key for key, default in ROWS.items() if default and not key.endswith("_dir")])
def test_a_default_told_is_the_default(key):
    told = tomllib.loads(f"{key} = {ROWS[key]}")
    assert EngineConfig.from_dict(told) == EngineConfig()


def test_a_default_left_out_is_none():
    assert [key for key, default in ROWS.items() if not default] == ["base"]
    assert EngineConfig().base is None


def test_the_example_is_taken():
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert EngineConfig.from_dict(tomllib.loads(example)) != EngineConfig()
