"""The options that several commands share, the settings that they make, and what is installed under them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from modularbase_core.config import EngineConfig, default_config_file

if TYPE_CHECKING:
    import pluggy

    from modularbase_core.packs.catalog import Catalog

# Any, because click decorates commands of every signature
_Command = TypeVar("_Command", bound=Callable[..., Any])

_PLUGINS: Final = "modularbase.plugins"
_NO_PLUGINS: Final = "modularbase.no_plugins"


class _NamedPath(click.Path):
    """A path that cannot be empty, which would mean the current folder."""

    # Any: a plain Path, though click knows other path types
    def convert(self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty; name a path", param, ctx)
        return super().convert(value, param, ctx)


def settings_options(command: _Command) -> _Command:
    """Add --config and --cache; `read_settings` takes what they give."""
    command = click.option(
        "--cache",
        "cache_dir",
        envvar="MODULARBASE_CACHE",
        type=_NamedPath(path_type=Path, file_okay=False),
        help="Folder of compiled artefacts (or MODULARBASE_CACHE).",
    )(command)
    return click.option(
        "--config",
        "config_file",
        envvar="MODULARBASE_CONFIG",
        type=_NamedPath(path_type=Path),
        help=f"Settings file (or MODULARBASE_CONFIG; else {default_config_file().name} in the user's config folder).",
    )(command)


threads_option = click.option(
    "--threads", metavar="N", type=click.IntRange(0, 1024), help="Of compiled code; 0 is one per physical core."
)


def read_settings(config_file: Path | None, cache_dir: Path | None, threads: int | None = None) -> EngineConfig:
    """Read the named settings file, or the user's own if there is one; what is given here wins."""
    path = config_file or default_config_file()
    config = EngineConfig.read(path) if config_file or path.exists() else EngineConfig()
    config = replace(config, cache_dir=cache_dir) if cache_dir else config
    return config if threads is None else replace(config, threads=threads)


def settings_file(config_file: Path | None) -> Path:
    """Return the file that `read_settings` reads, whether it is there or not."""
    return config_file or default_config_file()


def plugin_options(group: _Command) -> _Command:
    """Add --plugins and --no-plugins, before the command; `plugin_limits` tells what they give."""
    group = click.option(
        "--no-plugins",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember(_NO_PLUGINS),
        help="Load no plugin, and so no pack.",
    )(group)
    return click.option(
        "--plugins",
        envvar="MODULARBASE_PLUGINS",
        metavar="NAME[,NAME]",
        is_eager=True,
        expose_value=False,
        callback=_remember(_PLUGINS),
        help="Load these plugins or distributions alone (or MODULARBASE_PLUGINS).",
    )(group)


def plugin_limits(ctx: click.Context) -> tuple[str, ...] | None:
    """Return the names that plugins are limited to, none of them under --no-plugins; None where all are loaded."""
    text: str | None = ctx.meta.get(_PLUGINS)
    if ctx.meta.get(_NO_PLUGINS):
        if (
            text is not None
            and ctx.find_root().get_parameter_source("plugins") is click.core.ParameterSource.COMMANDLINE
        ):
            raise click.UsageError("--plugins and --no-plugins exclude each other; give one of them", ctx)
        return ()
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise click.UsageError("--plugins names no plugin; give names, or --no-plugins to load none", ctx)
    return words


def installed(config: EngineConfig) -> tuple[Catalog, pluggy.PluginManager]:
    """Load the plugins that the command line admits; return the packs and the manager that holds the plugins.

    Raises ConfigError, naming the nearest, when the limits name a plugin that is not installed.
    """
    from modularbase_core.packs.catalog import discover, plugin_manager, weights_store

    ctx = click.get_current_context(silent=True)
    manager = plugin_manager()
    only = plugin_limits(ctx) if ctx else None
    return discover(manager, only=only, store=weights_store(config.cache_dir)), manager


# Any: whatever an option holds
def _remember(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.meta[key] = value

    return callback
