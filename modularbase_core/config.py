"""The settings of an engine: validated values, from TOML or code.

How tokens are sampled is a matter of each request, see `turn.sample`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import platformdirs

from modularbase_core.errors import ConfigError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS: Final = ("float32", "float16", "int8", "int4")
"""How weights are held. float32: all of it; float16: matrices; int8, int4: matrices of layers as integers with a scale
for 32, others float16. Vectors (norms, biases) are of the device's working dtype always."""
FORMS: Final = ("fp32", "fp16", "int8", "int4")
"""How weight files keep matrices, see `sdk.precision.stored_dtype`."""


def default_cache_dir() -> Path:
    """Return where compiled artefacts are kept unless a setting says otherwise."""
    return platformdirs.user_cache_path("modularbase", appauthor=False)


def default_sessions_dir() -> Path:
    """Return where conversations that have a name are kept unless a setting says otherwise."""
    return platformdirs.user_data_path("modularbase", appauthor=False) / "sessions"


def default_config_file() -> Path:
    """Return the settings file that is read if it exists."""
    return platformdirs.user_config_path("modularbase", appauthor=False) / "config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine may use. base: id of the base pack, None for the only one installed. device: cpu or cuda.

    threads: 0 is one per physical core. slots: on-demand packs held at once. hot_tokens: tokens of context kept in
    memory, over all sequences. prefix_tokens: of those, what conversations began with and others may begin with too; it
    gives way to all else. memory_bytes: all that weights, slots, pages and workspace may take.
    draft_tokens: most tokens that are looked up in the conversation and computed ahead while one answer runs; 0 is off.
    max_prompt_bytes: longest message taken, in UTF-8 bytes. threshold: the score, 0..1, from which a pack answers.
    packs_per_turn: most packs that the router chooses. fusion: how several packs' outputs are blended, by name.
    contradiction: a pack whose output's cosine with the leading pack's is below it has no say at that token; -1 is off.
    pins: packs (ids or aliases) loaded at start and never evicted; a slot must stay free beside them. eviction: lru
    or lfru. prefetch: bring likely packs in before they are asked for. host_cache_bytes: repacked weights kept mapped.
    sessions_dir: where conversations that have a name are kept. session_bytes: the most that one conversation takes on
    disk. cold: int8 or int4, of what leaves the hot window and is not kept exactly. cold_store: what keeps it, by name.
    base_precision, pack_precision: float32, float16, int8 or int4 of their weights; auto is float16 and int8.
    cuda_graphs: on a GPU, replay the calls of a decode step as one launch each.
    """

    base: str | None = None
    device: str = "cpu"
    cache_dir: Path = field(default_factory=default_cache_dir)
    threads: int = 0
    slots: int = 2
    hot_tokens: int = 8192
    prefix_tokens: int = 4096
    memory_bytes: int = 4 << 30
    draft_tokens: int = 15
    max_prompt_bytes: int = 256 << 10
    threshold: float = 0.4
    packs_per_turn: int = 1
    fusion: str = "mean"
    contradiction: float = 0.3
    pins: tuple[str, ...] = ()
    eviction: str = "lru"
    prefetch: bool = True
    host_cache_bytes: int = 1 << 30
    sessions_dir: Path = field(default_factory=default_sessions_dir)
    session_bytes: int = 4 << 30
    cold: str = "int8"
    cold_store: str = "lmdb"
    base_precision: str = "auto"
    pack_precision: str = "auto"
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; use cpu or cuda")
        for name, low, high in (
            ("threads", 0, 1024),
            ("slots", 1, 64),
            ("hot_tokens", 1024, 1 << 24),
            ("prefix_tokens", 0, 1 << 24),
            ("memory_bytes", 1 << 20, 1 << 48),
            ("draft_tokens", 0, 31),
            ("max_prompt_bytes", 1, 1 << 30),
            ("packs_per_turn", 1, 64),
            ("host_cache_bytes", 0, 1 << 48),
            ("session_bytes", 1 << 20, 1 << 44),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; use a whole number from {low} to {high}")
        for name, least, most in (("threshold", 0.0, 1.0), ("contradiction", -1.0, 1.0)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
                raise ConfigError(f"{name} is {number!r}; use a number from {least:g} to {most:g}")
        for name in ("base_precision", "pack_precision"):
            if getattr(self, name) not in ("auto", *PRECISIONS):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use auto, {', '.join(PRECISIONS)}")
        self._check_slots()

    @property
    def precisions(self) -> dict[str, str]:
        """Return the precision of weights by the kind of network."""
        return {"base": self.base_precision, "pack": self.pack_precision}

    def _check_slots(self) -> None:
        if self.eviction not in ("lru", "lfru"):
            raise ConfigError(f"eviction is {self.eviction!r}; use lru or lfru")
        if self.cold not in ("int8", "int4"):
            raise ConfigError(f"cold is {self.cold!r}; use int8 or int4")
        for name in ("prefetch", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; use true or false")
        if not isinstance(self.pins, tuple) or not all(isinstance(word, str) for word in self.pins):
            raise ConfigError(f"pins is {self.pins!r}; use a list of packs' ids")

    @classmethod
    def read(cls, path: Path) -> EngineConfig:
        """Read a TOML file; raises ConfigError, one sentence that begins with `path`."""
        try:
            return cls.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ConfigError(f"{path} does not exist; name another settings file") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML ({error}); correct it") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, value: Mapping[str, object]) -> EngineConfig:
        """Take settings by name; raises ConfigError on an unknown name or a value out of range."""
        known = [item.name for item in fields(cls)]
        for key in value:
            if key not in known:
                raise ConfigError(f"unknown setting {key!r}{nearest(key, known)}; rename or remove it")
        # Any, because the settings differ in type; __post_init__ checks the numbers
        settings: dict[str, Any] = dict(value)
        for key in ("base", "device", "cache_dir", "sessions_dir", "fusion", "cold_store"):
            if key in settings and not isinstance(settings[key], str):
                raise ConfigError(f"{key} is {settings[key]!r}; use a string")
        if isinstance(settings.get("pins"), list):
            settings["pins"] = tuple(settings["pins"])
        for key in ("cache_dir", "sessions_dir"):
            if key in settings:
                settings[key] = _folder(key, settings[key])
        return cls(**settings)


def _folder(key: str, text: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError(f"{key} is {text!r}; name a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user
        raise ConfigError(f"{key} is {text!r}, but that user has no home folder; name another folder") from error
