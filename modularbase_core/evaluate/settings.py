"""What is measured and how answers are generated: validated values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modularbase_core.errors import ConfigError, nearest
from modularbase_core.turn.sample import SamplingConfig

METRICS: Final = ("perplexity", "routing", "exact", "choice", "pass@k")
SPREAD: Final = 0.8
"""The temperature where several answers a task are drawn and none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How records are evaluated. metrics: of `METRICS`; none for perplexity, and routing where domains are labelled.

    k: of pass@k, in order; samples: answers a task, the largest k by default. temperature: greedy by default, or
    `SPREAD` where several answers a task are drawn. code_seconds: processor time of one program.
    """

    metrics: tuple[str, ...] = ()
    limit: int | None = None
    k: tuple[int, ...] = (1,)
    samples: int | None = None
    max_tokens: int = 256
    temperature: float | None = None
    seed: int = 0
    code_seconds: int = 3

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(
                    f"there is no metric {name!r}{nearest(name, METRICS)}; use some of {', '.join(METRICS)}"
                )
        for key, numbers in (("k", self.k), ("limit", (self.limit,)), ("samples", (self.samples,))):
            if not numbers or any(number is not None and number < 1 for number in numbers):
                raise ConfigError(f"{key} is {', '.join(map(str, numbers)) or 'empty'}; use numbers from 1 on")
        if self.code_seconds < 1:
            raise ConfigError(f"code_seconds is {self.code_seconds}; use at least 1")
        if self.answers < max(self.k):
            raise ConfigError(
                f"pass@{max(self.k)} needs {max(self.k)} answers a task, but samples is {self.samples}; raise it"
            )
        if "pass@k" in self.metrics and self.answers > 1 and self.sampling(several=True).temperature == 0:
            raise ConfigError(f"{self.answers} greedy answers to a task are all the same; use a temperature above 0")
        self.sampling(several=False)  # raises for what is out of range

    @property
    def answers(self) -> int:
        """Answers to a task of pass@k."""
        return max(self.k) if self.samples is None else self.samples

    def asks(self, metric: str) -> bool:
        """Tell whether a metric was named."""
        return metric in self.metrics

    def sampling(self, *, several: bool, number: int = 0) -> SamplingConfig:
        """Return how the answer `number` is sampled, each with a seed of its own; several: one of several to a task."""
        temperature = self.temperature
        if temperature is None:
            temperature = SPREAD if several and self.answers > 1 else 0.0
        return SamplingConfig(temperature=temperature, max_tokens=self.max_tokens, seed=self.seed + number)
