"""The keys of a recipe, what each may be, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.config import FORMS
from modularbase_core.errors import ConfigError, nearest
from modularbase_core.sdk.architecture import Architecture, BaseArchitecture, PackArchitecture
from modularbase_core.train.recipe.source import Source
from modularbase_core.train.recipe.teacher import Teacher

STAGES: Final = ("base", "router", "chat", "pack", "align", "grow", "distill")

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "stage": STAGES,
    "optimiser": ("muon", "adamw"),
    "schedule": ("wsd", "cosine"),
    "precision": ("bf16", "fp16", "fp32"),
    "parallel": ("ddp", "fsdp"),
    "device": ("auto", "cpu", "cuda"),
    "dtype": FORMS,
    "logs": ("tensorboard", "wandb", "none"),
    "learns": ("input", "output", "norms", "embedding", "understanding", "pack", "fusion", "head"),
}
"""What keys of few values may be; of a list, each of its items."""

POSITIVE: Final = (
    "batch_tokens",
    "warmup_steps",
    "decay_share",
    "matrix_rate",
    "other_rate",
    "clip_norm",
    "accumulate",
)
NOT_NEGATIVE: Final = ("recall_tokens", "needle_tokens", "weight_decay", "balance", "z_loss", "threads")
SHARES: Final = ("replay_share", "threshold", "kept_start")
LEARNS: Final[Mapping[str, tuple[str, ...]]] = {
    "align": ("input", "output", "norms"),
    "base": ("embedding", "understanding", "pack", "fusion", "head"),
}
"""Parts that a stage may limit what it learns to."""
OF_ONE_STAGE: Final = {"old_base": "align", "replay": "grow", "teacher": "distill"}
"""Keys that mean nothing to other stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One stage of training.

    stage: base (with the trunk that becomes general chat), router, chat (the trunk goes on alone, base frozen), pack
    (base frozen), align, grow or distill.
    tokens: how many to learn from; windows: (share of the steps, window length) in turn. A router counts messages
    where the others count tokens.
    base: the run or installed pack whose base is used; start: the one whose pack this continues from. Of installed
    ones `tokenizer`, `architecture` and `pack` may be left out. template: how conversations are written, else the
    template.json beside the tokenizer, else ours. data: the folder that files are relative to. folder: where the
    recipe lies, which `tokenizer`, `template`, `data`, `ship` and `over` are relative to.
    ship: the pack directory to write, with the fields of `manifest`, or else of the manifest that is there; dtype: how
    its weights are kept. examples, others: messages that belong to the pack and messages that do not (else the
    router's own), for its routing keys; over: the folder that holds the `base` and `router` which read them, or an
    installed base; else `base`.

    How it learns: `batch_tokens` make a step, walked in `accumulate` parts, whose gradients are added up. optimiser:
    muon for matrices (`matrix_rate`) and AdamW for the rest (`other_rate`), or adamw for all (`other_rate`). schedule:
    wsd (warm up, hold, decay over `decay_share` of the steps) or cosine. clip_norm: the largest norm of the gradient.
    kept_start: share of the weights it started from in those it ends with, see `learn.blended`.
    precision: of the passes; weights are kept in float32. checkpoint_activations: keep what enters a layer alone and
    run it once more on the way back. balance, z_loss: weights of the losses that
    spread tokens over a mixture's experts and keep its router's logits small.
    parallel: how several processes share the work; offload: whether weights wait in host memory. threads: of a
    process, 0 for torch's own choice. logs: who gets the losses besides the terminal.

    align, grow and distill: see `train.align`, `train.grow` and `train.distill`. learns: which parts of an aligned
    pack learn, the input adapter unless told; or which of a base and its trunk, all unless told. old_base: the base
    that an aligned pack was made for, a run, an installed pack or a folder, for a closer start. replay: what the pack
    learnt from before; `replay_share` of the tokens are of it. threshold: the share of messages that reach no pack
    over which they are a domain of their own. teacher: who is learnt from.
    """

    name: str
    stage: str
    seed: int = 1
    tokens: int
    batch_tokens: int = 4096
    windows: tuple[tuple[float, int], ...] = ((1.0, 1024),)
    data: str = ""
    mix: tuple[Source, ...] = ()
    response_only: bool = False
    recall_tokens: int = 0
    needle_tokens: int = 0
    hay: tuple[Source, ...] = ()
    base: str | None = None
    start: str | None = None
    tokenizer: str = ""
    template: str = ""
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 100
    decay_share: float = 0.5
    optimiser: str = "muon"
    schedule: str = "wsd"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    kept_start: float = 0.0
    accumulate: int = 1
    precision: str = "bf16"
    compile: bool = True
    checkpoint_activations: bool = False
    balance: float = 0.01
    z_loss: float = 0.0
    parallel: str = "ddp"
    offload: bool = False
    device: str = "auto"
    threads: int = 0
    logs: tuple[str, ...] = ("tensorboard",)
    architecture: Architecture | None = None
    pack: Architecture | None = None
    router: Architecture | None = None
    folder: Path = Path()
    ship: str = ""
    dtype: str = "int8"
    over: str = ""
    manifest: Mapping[str, Any] | None = None  # Any: JSON, checked by Manifest
    examples: tuple[Source, ...] = ()
    others: tuple[Source, ...] = ()
    learns: tuple[str, ...] = ()
    old_base: str | None = None
    replay: tuple[Source, ...] = ()
    replay_share: float = 0.3
    threshold: float = 0.5
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        for name in CHOICES:
            self._check_choice(name)
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"recipe {self.name!r}: {name} is {getattr(self, name)}; it must be positive")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"recipe {self.name!r}: {name} is {getattr(self, name)}; it must be at least 0")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                told = f"{name} is {getattr(self, name)}; it must be at least 0 and under 1"
                raise ConfigError(f"recipe {self.name!r}: {told}")
        if self.tokens < self.batch_tokens:
            raise ConfigError(f"recipe {self.name!r}: tokens {self.tokens} is less than one batch")
        self._check_windows()
        for name, stage in OF_ONE_STAGE.items():
            if getattr(self, name) and self.stage != stage:
                told = f"`{name}` is for stage {stage!r}, not {self.stage!r}; remove it"
                raise ConfigError(f"recipe {self.name!r}: {told}")
        self._check_learns()
        if self.stage == "distill" and self.teacher is None:
            raise ConfigError(f"recipe {self.name!r} has no [teacher]; say there who is learnt from, by its `kind`")
        if self.stage == "chat" and self.manifest is not None and self.manifest.get("type") != "system":
            raise ConfigError(
                f"recipe {self.name!r}: the manifest of stage chat says type {self.manifest.get('type')!r}; "
                "general chat is of type 'system', another pack of stage 'pack'"
            )

    def _check_choice(self, name: str) -> None:
        given, allowed = getattr(self, name), CHOICES[name]
        for word in given if isinstance(given, tuple) else (given,):
            if word not in allowed:
                raise ConfigError(
                    f"recipe {self.name!r}: {name} is {word!r}; use one of {', '.join(allowed)}{nearest(word, allowed)}"
                )

    def _check_learns(self) -> None:
        for part in self.learns:
            if part not in (allowed := LEARNS.get(self.stage, ())):
                told = f"use some of {', '.join(allowed)}" if allowed else "remove `learns`"
                raise ConfigError(f"recipe {self.name!r}: stage {self.stage!r} cannot learn {part!r} alone; {told}")
        if self.stage == "base" and self.learns and not (self.base and (self.start or "pack" in self.learns)):
            raise ConfigError(
                f"recipe {self.name!r}: only {', '.join(self.learns)} learn, so the rest must be there already; name "
                "`base` and `start`"
            )

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
            if self.stage != "router" and self.batch_tokens // length % self.accumulate:
                raise ConfigError(
                    f"recipe {self.name!r}: batch_tokens {self.batch_tokens} holds {self.batch_tokens // length} "
                    f"windows of {length}, which {self.accumulate} parts (accumulate) do not share evenly"
                )
            if length > min(trained, default=length):
                raise ConfigError(
                    f"recipe {self.name!r}: a window of {length} tokens is longer than the trained window of "
                    f"{min(trained)}; shorten it or raise window.trained_tokens"
                )

    @property
    def learns_base(self) -> bool:
        """Whether the base learns too, together with the trunk: of stage base, or distilled over no base."""
        return self.stage == "base" or (self.stage == "distill" and self.base is None)

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
