"""A training recipe: what a stage learns, from which files, for how long. Read from TOML, every key checked."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ConfigError, nearest
from modularbase_core.sdk.architecture import Architecture, BaseArchitecture, PackArchitecture, architecture_from_dict
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
    base: the run or installed pack whose base is used; start: the one whose pack this continues from. Of installed
    ones `tokenizer`, `architecture` and `pack` may be left out. folder: where the recipe lies, which `tokenizer`,
    `ship` and `over` are relative to. A router counts messages where the others count tokens. ship: the pack
    directory to write, with the fields of `manifest`, or else of the manifest that is there. examples, others:
    messages that belong to the pack and messages that do not (else the router's own), for its routing keys; over:
    the folder that holds the `base` and `router` which read them, or an installed base; else `base`.
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
        for name in ("batch_tokens", "warmup_steps", "decay_share"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"recipe {self.name!r}: {name} is {getattr(self, name)}; it must be positive")
        if self.tokens < self.batch_tokens:
            raise ConfigError(f"recipe {self.name!r}: tokens {self.tokens} is less than one batch")
        self._check_windows()

    def _check_windows(self) -> None:
        total = sum(share for share, _ in self.windows)
        if not math.isclose(total, 1.0, abs_tol=0.02):
            raise ConfigError(f"recipe {self.name!r}: the shares of windows add up to {total:g}; make them add up to 1")
        networks = () if self.stage == "router" else (self.architecture, self.pack)
        trained = [n.window.trained_tokens for n in networks if isinstance(n, (BaseArchitecture, PackArchitecture))]
        for share, length in self.windows:
            if not (share > 0 and length > 0):
                raise ConfigError(f"recipe {self.name!r}: a window is [{share:g}, {length}]; both must be positive")
            if self.batch_tokens % length:
                raise ConfigError(f"recipe {self.name!r}: batch_tokens is not a multiple of the window {length}")
            if length > min(trained, default=length):
                raise ConfigError(
                    f"recipe {self.name!r}: a window of {length} tokens is longer than the trained window of "
                    f"{min(trained)}; shorten it or raise window.trained_tokens"
                )

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
    _check(Recipe, value, path.name)
    for key in ("architecture", "pack", "router"):
        if key in value:
            value[key] = architecture_from_dict(value[key])
    for key in ("mix", "examples", "others"):
        if key in value:
            value[key] = tuple(_source(item, f"{path.name}: {key}") for item in value[key])
    if "windows" in value:
        value["windows"] = tuple((float(share), length) for share, length in value["windows"])
    return Recipe(**value, folder=path.parent)


def _source(value: Mapping[str, Any], where: str) -> Source:
    _check(Source, value, where)
    given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return Source(**given)


def _check(kind: type[Any], value: Mapping[str, Any], where: str) -> None:  # Any: what TOML gives
    known = {item.name: item for item in fields(kind) if item.name != "folder"}  # the reader's to give
    for key, given in value.items():
        if key not in known:
            raise ConfigError(f"{where} has the unknown key {key!r}{nearest(key, known)}")
        expected, fits = _FORMS[str(known[key].type)]
        if not fits(given):
            raise ConfigError(f"{where}: {key} is {reprlib.repr(given)}; expected {expected}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{where} lacks {name!r}")


def _is(*kinds: type) -> Callable[[object], bool]:
    return lambda given: isinstance(given, kinds) and (bool in kinds or not isinstance(given, bool))


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda given: isinstance(given, list) and all(map(fits, given))


def _share_and_length(given: object) -> bool:
    return isinstance(given, list) and len(given) == 2 and _is(int, float)(given[0]) and _is(int)(given[1])


_FORMS: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "str": ("a string", _is(str)),
    "str | None": ("a string", _is(str)),
    "int": ("a whole number", _is(int)),
    "float": ("a number", _is(int, float)),
    "bool": ("true or false", _is(bool)),
    "tuple[str, ...]": ("a list of strings", _list_of(_is(str))),
    "tuple[tuple[float, int], ...]": ("a list of pairs [share, length]", _list_of(_share_and_length)),
    "tuple[Source, ...]": ("a list of tables", _list_of(_is(dict))),
    "Architecture | None": ("a table", _is(dict)),
    "Mapping[str, Any] | None": ("a table", _is(dict)),
}
"""What a field's annotation asks of TOML: in words, and as a test."""
