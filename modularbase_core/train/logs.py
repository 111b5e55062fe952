"""Who is told how training goes: the terminal, TensorBoard's event files, Weights & Biases.

Only the first process of a run tells anything.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from tqdm import tqdm

from modularbase_core.errors import ConfigError, TrainingError
from modularbase_core.train.events import EventFile

LINE_SECONDS: Final = 30.0
"""Between two lines where no terminal shows a bar."""
LOG_STEPS: Final = 10
"""Between two entries of a log; losses of single steps tell little."""


class Log(Protocol):
    """Keeps the course of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""

    def close(self) -> None:
        """Write out what is still held back."""


class WandB:
    """A run of Weights & Biases; where it is kept is the service's own settings' matter."""

    def __init__(self, package: ModuleType, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._run = package.init(
            project="modularbase", name=name, id=name, resume="allow", dir=str(folder), config=dict(settings)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is still held back."""
        self._run.finish()


def open_logs(names: Sequence[str], run: Path, step: int, settings: Mapping[str, Any]) -> list[Log]:
    """Open the logs of the run in folder `run`, which goes on from `step`.

    names: tensorboard, wandb; none is nobody. settings: what the run was started with, for logs that keep it.
    Raises ConfigError for a package that is not there, TrainingError for a folder that takes no files.
    """
    logs: list[Log] = []
    try:
        if "tensorboard" in names:
            logs.append(EventFile(run / "logs", step))
        if "wandb" in names:
            logs.append(WandB(_wandb(), run.name, run / "logs", settings))
    except OSError as error:
        raise TrainingError(
            f"the logs in {run / 'logs'} cannot be written ({error.strerror}); see to that, "
            "use another runs folder, or give logs = ['none']"
        ) from error
    return logs


def _wandb() -> ModuleType:
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise ConfigError(
            "logs: wandb needs the package wandb, which is not installed; "
            "run `pip install 'modularbase[wandb]'` or leave wandb out"
        ) from error


class Progress:
    """Shows loss, speed and the time left: a bar on a terminal, elsewhere a line every LINE_SECONDS.

    mean: the running mean of the loss, of the last 50 steps or so; unit: what the speed counts.
    """

    def __init__(
        self,
        total: int,
        done: int,
        logs: Sequence[Log],
        *,
        quiet: bool,
        mean: float | None = None,
        unit: str = "tokens",
    ) -> None:
        self._total, self._logs, self._quiet, self._unit = total, list(logs), quiet, unit
        self._bar: Any = None  # tqdm ships no types
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="step", mininterval=1.0)
        self._first, self._begun = done, time.monotonic()
        self._told, self._logged, self._tokens = self._begun, (self._begun, 0), 0
        self.mean = mean

    def step(self, number: int, tokens: int, loss: float, values: Mapping[str, float]) -> None:
        """Tell that `number` steps are done, the last of `tokens` with `loss`; `values` are for the logs."""
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self._tokens += tokens
        now = time.monotonic()
        speed = self._tokens / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {self.mean:.3f}, {speed:,.0f} {self._unit}/s", refresh=False)
            self._bar.update()
        elif not self._quiet and (now - self._told >= LINE_SECONDS or number == self._total):
            self._told = now
            left = (now - self._begun) / (number - self._first) * (self._total - number)
            line = (
                f"step {number}/{self._total}: loss {self.mean:.3f}, {speed:,.0f} {self._unit}/s, {_spoken(left)} left"
            )
            print(line, file=sys.stderr, flush=True)
        if self._logs and (number % LOG_STEPS == 0 or number == self._total):
            last, before = self._logged
            recent = (self._tokens - before) / max(now - last, 1e-9)
            self._logged = now, self._tokens
            self._tell(number, {"loss": loss, **values, f"{self._unit}_per_second": recent})

    def close(self) -> None:
        """End the bar and the logs."""
        if self._bar is not None:
            self._bar.close()
        for log in self._logs:
            log.close()

    def _tell(self, number: int, values: Mapping[str, float]) -> None:
        for log in list(self._logs):
            try:
                log.write(number, values)
            except OSError as error:  # a log is told, never trained from: a checkpoint that finds no room ends the run
                self._logs.remove(log)
                log.close()
                print(f"note: {type(log).__name__} is told no more ({error.strerror})", file=sys.stderr, flush=True)


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
