"""The options that several commands share, and the settings that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from modularbase_core.config import EngineConfig, default_config_file

# Any, because click decorates commands of every signature
_Command = TypeVar("_Command", bound=Callable[..., Any])


def settings_options(command: _Command) -> _Command:
    """Add --config and --cache; `read_settings` takes what they give."""
    command = click.option(
        "--cache",
        "cache_dir",
        envvar="MODULARBASE_CACHE",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of compiled artefacts (or MODULARBASE_CACHE).",
    )(command)
    return click.option(
        "--config",
        "config_file",
        envvar="MODULARBASE_CONFIG",
        type=click.Path(path_type=Path),
        help=f"Settings file (or MODULARBASE_CONFIG; else {default_config_file().name} in the user's config folder).",
    )(command)


def read_settings(config_file: Path | None, cache_dir: Path | None) -> EngineConfig:
    """Read the named settings file, or the user's own if there is one; the cache folder given here wins."""
    path = config_file or default_config_file()
    config = EngineConfig.read(path) if config_file or path.exists() else EngineConfig()
    return replace(config, cache_dir=cache_dir) if cache_dir else config
