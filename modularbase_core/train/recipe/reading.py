"""Read a recipe from TOML: every key known, every value of its kind."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from modularbase_core.errors import ConfigError, nearest
from modularbase_core.sdk.architecture import architecture_from_dict
from modularbase_core.train.recipe.keys import Recipe
from modularbase_core.train.recipe.source import Source
from modularbase_core.train.recipe.teacher import Teacher

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def read_recipe(path: Path, overrides: Mapping[str, Any] = _NOTHING) -> Recipe:  # Any: what TOML gives
    """Read a recipe; an unknown key, a missing one or a wrong type is a ConfigError.

    overrides: keys with the values, as TOML would give them, that go before the file's.
    """
    try:
        value = {**tomllib.loads(path.read_text(encoding="utf-8")), **overrides}
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not TOML: {error}") from error
    _check(Recipe, value, path.name)
    for item in fields(Recipe):
        if item.name in value and (make := _MADE.get(str(item.type))):
            value[item.name] = make(value[item.name], f"{path.name}: {item.name}")
    return Recipe(**value, folder=path.parent)


def _sources(value: list[Any], where: str) -> tuple[Source, ...]:
    return tuple(_source(item, where) for item in value)


def _source(value: Mapping[str, Any], where: str) -> Source:
    _check(Source, value, where)
    given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return Source(**given)


def _teacher(value: Mapping[str, Any], where: str) -> Teacher:
    _check(Teacher, value, where)
    return Teacher(**value)


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
    "Teacher | None": ("a table", _is(dict)),
    "Mapping[str, Any] | None": ("a table", _is(dict)),
}
"""What a field's annotation asks of TOML: in words, and as a test."""

_MADE: Final[Mapping[str, Callable[[Any, str], object]]] = {
    "tuple[str, ...]": lambda value, where: tuple(value),
    "tuple[tuple[float, int], ...]": lambda value, where: tuple((float(share), length) for share, length in value),
    "tuple[Source, ...]": _sources,
    "Architecture | None": lambda value, where: architecture_from_dict(value),
    "Teacher | None": _teacher,
}
"""What is made of a value of TOML, by its field's annotation; of others, nothing."""
