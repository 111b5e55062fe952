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

from modularbase_core.errors import ConfigError

LINE_SECONDS: Final = 30.0
"""Between two lines where no terminal shows a bar."""
LOG_STEPS: Final = 10
"""Between two entries of a log; losses of single steps tell little."""

_PACKAGES: Final = {"tensorboard": ("tensorboardX", "train"), "wandb": ("wandb", "wandb")}
"""Of each log its package, and our extra that brings it."""


class Log(Protocol):
    """Keeps the course of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""

    def close(self) -> None:
        """Write out what is still held back."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, package: ModuleType, folder: Path, step: int) -> None:
        # a run that was killed wrote of steps that it now makes again; the suffix tells apart what one second began
        self._writer = package.SummaryWriter(
            str(folder), purge_step=step + 1 if step else None, filename_suffix=f".{step}"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is still held back."""
        self._writer.close()


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

    names: tensorboard, wandb; none of them lets TensorBoard have its files if its package is there, "none" nobody.
    settings: what the run was started with, for logs that keep it.
    Raises ConfigError for a named package that is not there.
    """
    if not names:
        names = ["tensorboard"] if _find("tensorboard") else ["none"]
    logs: list[Log] = []
    for name in names:
        if name == "none":
            continue
        package = _find(name)
        if package is None:
            module, extra = _PACKAGES[name]
            raise ConfigError(
                f"logs: {name} needs the package {module}, which is not installed; "
                f"run `pip install 'modularbase[{extra}]'` or leave {name} out"
            )
        folder = run / "logs"
        logs.append(
            TensorBoard(package, folder, step) if name == "tensorboard" else WandB(package, run.name, folder, settings)
        )
    return logs


def _find(name: str) -> ModuleType | None:
    module = _PACKAGES[name][0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


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
        self._total, self._logs, self._quiet, self._unit = total, logs, quiet, unit
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
            for log in self._logs:
                log.write(number, {"loss": loss, **values, f"{self._unit}_per_second": recent})

    def close(self) -> None:
        """End the bar and the logs."""
        if self._bar is not None:
            self._bar.close()
        for log in self._logs:
            log.close()


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
