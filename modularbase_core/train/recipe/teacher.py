"""Who a stage learns from: another model of ours, one of Hugging Face's format, or one behind a URL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from modularbase_core.errors import ConfigError, nearest

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "modularbase": ("base", "pack"),
    "huggingface": ("model",),
    "openai": ("url", "model"),
}
"""Each kind of teacher with the keys that it cannot do without."""
_MODES: Final = ("auto", "logits", "text")
_POSITIVE: Final = ("temperature", "top_k", "prompts", "longest", "group", "concurrency", "timeout_seconds")
_NOT_NEGATIVE: Final = ("sampling_temperature", "requests_per_minute", "retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The [teacher] of a recipe.

    kind: modularbase (`base` and `pack`: runs, installed packs or folders), huggingface (`model`: a folder with
    config.json, weights and tokenizer.json) or openai (`url` up to /v1, and `model` by its name there).
    mode: logits are compared word by word where both read the same tokens, else the teacher writes responses (text)
    and these are learnt; auto takes logits where it can. weight: of the teacher; the rest, up to 1, is the mix's own.

    logits: both distributions are softened by `temperature` (Hinton et al., 2015), and compared on the teacher's
    `top_k` likeliest tokens, all others as one.
    text: the mix's first `prompts` are answered, `group` at a time, after the message `system` if there is one, in at
    most `longest` tokens each, drawn at `sampling_temperature`, 0 for the likeliest.
    openai: `concurrency` requests at once, `requests_per_minute` of them at most, 0 for no limit; a failed one is
    sent `retries` times more, and given up after `timeout_seconds`. key_variable: the environment variable that holds
    the key, where one is needed.
    """

    kind: str
    base: str = ""
    pack: str = ""
    model: str = ""
    url: str = ""
    key_variable: str = ""
    mode: str = "auto"
    weight: float = 1.0
    temperature: float = 1.0
    top_k: int = 64
    prompts: int = 1000
    group: int = 8
    system: str = ""
    longest: int = 256
    sampling_temperature: float = 0.0
    concurrency: int = 4
    requests_per_minute: float = 0.0
    retries: int = 5
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.kind not in NEEDS:
            raise ConfigError(
                f"teacher.kind is {self.kind!r}; use one of {', '.join(NEEDS)}{nearest(self.kind, NEEDS)}"
            )
        if self.mode not in _MODES:
            raise ConfigError(f"teacher.mode is {self.mode!r}; use one of {', '.join(_MODES)}")
        for name in NEEDS[self.kind]:
            if not getattr(self, name):
                raise ConfigError(f"teacher: a teacher of kind {self.kind!r} needs `{name}`; give it")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"teacher.{name} is {getattr(self, name)}; it must be positive")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"teacher.{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.weight <= 1:
            raise ConfigError(f"teacher.weight is {self.weight}; it must be over 0 and at most 1")
        if self.kind == "openai":
            self._check_url()

    def _check_url(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"teacher.url is {self.url!r}; write it as https://HOST/v1")
        if parts.username or parts.password:
            raise ConfigError("teacher.url holds a user or password; name the variable of the key as `key_variable`")
        if self.mode == "logits":
            raise ConfigError("teacher.mode is 'logits', which a teacher of kind 'openai' does not give; use 'text'")
