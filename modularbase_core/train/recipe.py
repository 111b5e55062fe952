"""A training recipe: what a stage learns, from which files, for how long. Read from TOML, every key checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from modularbase_core.errors import ConfigError, nearest
from modularbase_core.sdk.architecture import Architecture, architecture_from_dict
from modularbase_core.train.packing import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAGES = ("base", "pack", "router")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One stage of training.

    stage: base (with the trunk that becomes general chat), pack (base frozen) or router.
    tokens: how many to learn from; windows: (share of the steps, window length) in turn.
    base: the run whose base is used; start: the run whose pack this one continues from. folder: where the
    recipe lies, which `tokenizer`, `ship` and `over` are relative to. A router counts messages where the others
    count tokens. ship: the pack directory to write, with the fields of `manifest`. examples, others: messages
    that belong to the pack and messages that do not, for its routing keys; over: the folder that holds the
    shipped `base` and `router` which read them.
    """

    name: str
    stage: str
    seed: int = 1
    tokens: int
    batch_tokens: int = 4096
    windows: tuple[tuple[float, int], ...] = ((1.0, 1024),)
    mix: tuple[Source, ...] = ()
    response_only: bool = False
    recall_tokens: int = 0
    base: str | None = None
    start: str | None = None
    tokenizer: str = ""
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 100
    decay_share: float = 0.5
    architecture: Architecture | None = None
    pack: Architecture | None = None
    router: Architecture | None = None
    folder: Path = Path()
    ship: str = ""
    over: str = ""
    manifest: Mapping[str, Any] | None = None  # Any: JSON, checked by Manifest
    examples: tuple[Source, ...] = ()
    others: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"recipe {self.name!r}: stage is {self.stage!r}; use one of {', '.join(STAGES)}")
        if self.tokens < self.batch_tokens:
            raise ConfigError(f"recipe {self.name!r}: tokens {self.tokens} is less than one batch")
        for _, length in self.windows:
            if self.batch_tokens % length:
                raise ConfigError(f"recipe {self.name!r}: batch_tokens is not a multiple of the window {length}")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self.tokens // self.batch_tokens

    def phases(self) -> list[tuple[int, int]]:
        """Return (first step, window length) of each phase."""
        out, share = [], 0.0
        for part, length in self.windows:
            out.append((round(share * self.steps), length))
            share += part
        return out


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; an unknown key, a missing one or a wrong type is a ConfigError."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not TOML: {error}") from error
    for key in ("architecture", "pack", "router"):
        if key in value:
            value[key] = architecture_from_dict(value[key])
    for key in ("mix", "examples", "others"):
        if key in value:
            value[key] = tuple(_checked(Source, _tuples(item), f"{path.name}: {key}") for item in value[key])
    if "windows" in value:
        value["windows"] = tuple((float(share), int(length)) for share, length in value["windows"])
    return _checked(Recipe, {**value, "folder": path.parent}, path.name)  # type: ignore[no-any-return]


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def _checked(kind: type[Any], value: Mapping[str, Any], where: str) -> Any:  # Any: built by field name
    known = {item.name: item for item in fields(kind)}
    for key in value:
        if key not in known:
            raise ConfigError(f"{where} has the unknown key {key!r}{nearest(key, known)}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{where} lacks {name!r}")
    return kind(**value)
