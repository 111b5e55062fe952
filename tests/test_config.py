from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.config import EngineConfig
from modularbase_core.errors import ConfigError


def test_settings_come_from_toml(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('base = "nano-base"\ncache_dir = "~/models"\nslots = 3\nthreshold = 1\n')
    config = EngineConfig.read(path)
    assert config == EngineConfig(base="nano-base", cache_dir=Path.home() / "models", slots=3, threshold=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slot = 3", r"unknown setting 'slot' \(did you mean 'slots'\?\)"),
        ("slots = 0", "slots is 0; use a whole number from 1 to 64"),
        ("threshold = 1.5", "threshold is 1.5; use a number from 0 to 1"),
        ("threshold = nan", "threshold is nan; use a number"),
        ("contradiction = -2", "contradiction is -2; use a number from -1 to 1"),
        ("contradiction = true", "contradiction is True; use a number"),
        ("packs_per_turn = 0", "packs_per_turn is 0; use a whole number from 1 to 64"),
        ("fusion = 3", "fusion is 3; use a string"),
        ("slots = true", "slots is True; use a whole number"),
        ('threads = "two"', "threads is 'two'; use a whole number"),
        ("memory_bytes = 1e9", "memory_bytes is 1000000000.0; use a whole number"),
        ("cache_dir = 3", "cache_dir is 3; use a string"),
        ('eviction = "fifo"', "eviction is 'fifo'; use lru or lfru"),
        ('prefetch = "no"', "prefetch is 'no'; use true or false"),
        ("pins = [3]", r"pins is \(3,\); use a list of packs' ids"),
        ('pins = "python"', "pins is 'python'; use a list of packs' ids"),
        ("host_cache_bytes = -1", "host_cache_bytes is -1; use a whole number"),
        ('cache_dir = ""', "cache_dir is ''; name a folder"),
        ('cache_dir = "~nosuchuser/x"', "cache_dir is '~nosuchuser/x', but that user has no home folder"),
        ("slots = ", "is not TOML"),
        ("[engine]\nslots = 2", "unknown setting 'engine'"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path, text, told):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        EngineConfig.read(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.toml does not exist"):
        EngineConfig.read(tmp_path / "config.toml")
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        EngineConfig.read(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        EngineConfig.read(tmp_path)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.floats()))
def test_any_settings_are_taken_or_refused_in_a_sentence(settings):
    with suppress(ConfigError):
        EngineConfig.from_dict(settings)
