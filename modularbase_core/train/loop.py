"""The training loop: steps in parts, checkpoints that resume exactly, and an end told in one sentence.

What is learnt and from what is the stages'; this file only walks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from modularbase_core.errors import ConfigError, TrainingError
from modularbase_core.graph.blocks import Stack
from modularbase_core.train.checkpoints import load_weights
from modularbase_core.train.logs import Progress, open_logs
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.parallel import LossOf, Ranks, joined, stop_noted
from modularbase_core.train.precision import scaler_of
from modularbase_core.train.saving import check_keys, random_state, read_checkpoint, restore_random, write_checkpoint
from modularbase_core.train.schedule import Schedule

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the loop walks; but for `optimiser` and `precision`, nothing of what is learnt.

    optimiser: muon or adamw. precision: bf16, fp16 or fp32; the loss itself casts, see `precision.autocast`.
    accumulate: parts of a step, one after the other. checkpoint_activations: run each block anew on the way back
    (Chen et al., 2016). parallel, device, offload: see `parallel.joined`. logs: see `logs.open_logs`.
    """

    optimiser: str = "muon"
    precision: str = "bf16"
    accumulate: int = 1
    checkpoint_activations: bool = False
    parallel: str = "ddp"
    offload: bool = False
    device: str = "auto"
    logs: tuple[str, ...] = ("none",)


def train(
    network: nn.Module,
    loss_of: LossOf,
    batches: Callable[[int], Iterable[Batch]],
    schedule: Schedule,
    checkpoint: Path,
    *,
    settings: Settings | None = None,
    recipe: Mapping[str, str] | None = None,
    quiet: bool = False,
    save_seconds: float = 240.0,
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Train `network` in place from its checkpoint, if there is one, to the schedule's end.

    It ends where it was trained: on that device, and under fsdp divided; whoever reads on, reads the checkpoint.
    loss_of(ids [W, N+1], learn [W, N+1]) is a scalar, the mean over the tokens that count, which are those of
    learn[:, 1:]; where it has a method `figures`, logs are told what that says of the last batch. batches(step) yields
    batches from that step on, the same in every process. recipe: what `saving.keys_of` says of it, kept in the
    checkpoint. finish: what is made of the last step's state_dict before it is kept.

    The checkpoint is written atomically every `save_seconds`, at the end and on Ctrl-C; one that comes inside
    an optimiser step leaves the older checkpoint, so a run that resumes has the bits of one that never stopped.
    Raises TrainingError, and saves nothing more, for a loss that is no number and for a checkpoint that finds no room;
    ConfigError for a checkpoint of another recipe.
    """
    settings = settings or Settings()
    with joined(settings.parallel, settings.device, offload=settings.offload) as ranks:
        _Walk(network, loss_of, schedule, checkpoint, settings, recipe or {}, ranks, finish).run(
            batches, quiet=quiet, save_seconds=save_seconds
        )


class _Walk:
    """One run of the loop."""

    def __init__(
        self,
        network: nn.Module,
        loss_of: LossOf,
        schedule: Schedule,
        checkpoint: Path,
        settings: Settings,
        recipe: Mapping[str, str],
        ranks: Ranks,
        finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None,
    ) -> None:
        self._finish = finish
        self._network, self._schedule, self._path = network, schedule, checkpoint
        self._settings, self._recipe, self._ranks = settings, dict(recipe), ranks
        state = read_checkpoint(checkpoint) if checkpoint.exists() else None
        if state is not None:
            check_keys(recipe, state, checkpoint)
            load_weights(network, state["network"], checkpoint)
        network.to(ranks.device)
        for stack in network.modules():
            if isinstance(stack, Stack):
                stack.recompute = settings.checkpoint_activations
        self._loss_of = ranks.spread(network, loss_of)
        self._figures: Callable[[], Mapping[str, float]] = getattr(loss_of, "figures", dict)
        self._optimisers = Optimisers(network, schedule, settings.optimiser)
        self._scaler = scaler_of(settings.precision, ranks.device)
        self._step = self._saved = 0
        self._loss: float | None = None  # the running mean
        if state is not None:
            self._restore(state)

    def run(self, batches: Callable[[int], Iterable[Batch]], *, quiet: bool, save_seconds: float) -> None:
        """Walk to the end, or to where it is stopped."""
        ranks, total = self._ranks, self._schedule.steps
        told = {**asdict(self._schedule), **asdict(self._settings)}
        logs = open_logs(self._settings.logs, self._path.parent, self._step, told) if ranks.first else []
        progress = Progress(total, self._step, logs, quiet=quiet or not ranks.first, mean=self._loss)
        saved, whole = time.monotonic(), True
        try:
            with stop_noted(ranks) as stop:
                for ids, learn in _until(batches(self._step), total - self._step):
                    part = self._gradient(ids, learn)
                    due = ranks.first and time.monotonic() - saved > save_seconds
                    loss, stopped, saves = ranks.sum(part, stop(), due)
                    norm = self._clipped(loss)
                    whole = False  # until every optimiser has stepped, the weights belong to no step
                    self._update(norm)
                    whole = True
                    rate = self._schedule.factor(self._step - 1)
                    figures = {"rate": rate, "gradient_norm": norm, **self._figures()}
                    progress.step(self._step, learn[:, 1:].numel(), loss, figures)
                    self._loss = progress.mean
                    if stopped:
                        raise _Stopped
                    if saves:
                        self._save()
                        saved = time.monotonic()
            self._save()
        except TrainingError:
            raise
        except BaseException as error:
            # of several processes, all came here together only when all were asked to stop
            if whole and (ranks.count == 1 or isinstance(error, _Stopped)):
                self._save()
            raise
        finally:
            progress.close()

    def _gradient(self, ids: Tensor, learn: Tensor) -> float:
        """Add up the gradient of this process's parts of a batch; return their share in its mean loss."""
        ranks, parts = self._ranks, self._settings.accumulate
        if len(ids) % (ranks.count * parts):
            raise ConfigError(
                f"a batch of {len(ids)} windows cannot be shared evenly by {ranks.count} processes in {parts} parts "
                "each; raise batch_tokens, or lower accumulate or the number of processes"
            )
        counted, total = learn[:, 1:], float(learn[:, 1:].sum())
        mine = (ranks.share(ids).chunk(parts), ranks.share(learn).chunk(parts), ranks.share(counted).chunk(parts))
        loss_sum = 0.0
        for number, (some_ids, some_learn, some) in enumerate(zip(*mine, strict=True)):
            # a mean of means would let a token count for more where few do
            weight = float(some.sum()) / total if total else 1 / (parts * ranks.count)
            with ranks.part(last=number == parts - 1):
                loss = self._loss_of(some_ids.to(ranks.device), some_learn.to(ranks.device))
                # the processes' gradients are averaged, so each weighs as much as all
                self._scaler.scale(loss * (weight * ranks.count)).backward()  # type: ignore[no-untyped-call]  # so torch
            loss_sum += weight * loss.item()
        return loss_sum

    def _clipped(self, loss: float) -> float:
        """Return the norm of the gradient, which is clipped; raises TrainingError when it or the loss is no number."""
        if not math.isfinite(loss):
            raise self._lost(f"the loss is {loss}")
        self._optimisers.unscale(self._scaler)
        norm = self._optimisers.clip()
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            raise self._lost(f"the gradient's norm is {norm}")
        return norm

    def _update(self, norm: float) -> None:
        """Make the step, or leave it out where scaled gradients overflowed, and count it."""
        if math.isfinite(norm):
            self._optimisers.step(self._step)
        self._optimisers.clear()
        self._scaler.update()
        if self._scaler.is_enabled() and self._scaler.get_scale() < 1:
            raise self._lost(
                "gradients overflow fp16 however little they are scaled (precision bf16 or fp32 holds them)"
            )
        self._step += 1

    def _lost(self, what: str) -> TrainingError:
        last = f"step {self._saved} is kept" if self._saved else "nothing was saved so far"
        return TrainingError(
            f"step {self._step + 1} of {self._schedule.steps}: {what}; lower matrix_rate and other_rate, or look at "
            f"what that step learns from, and run again ({last} in {self._path})"
        )

    def _save(self) -> None:
        if self._step == self._saved and self._path.exists():
            return
        state = {
            "network": self._ranks.whole(self._network.state_dict()),
            "optimisers": self._ranks.whole(self._optimisers.state_dict()),
            "scaler": self._scaler.state_dict(),
            "random": random_state(self._ranks.device),
            "recipe": self._recipe,
            "step": self._step,
            "loss": self._loss,
        }
        failed: Exception | None = None
        if self._ranks.first:
            if self._finish is not None and self._step == self._schedule.steps:
                state["network"] = self._finish(state["network"])
            try:
                write_checkpoint(state, self._path)
            except Exception as error:
                failed = error
        (failures,) = self._ranks.sum(failed is not None)  # also keeps all here until it is written
        if failed is not None:
            raise failed
        if failures:
            raise TrainingError(f"the first process could not write {self._path}; it says why")
        self._saved = self._step

    def _restore(self, state: Mapping[str, Any]) -> None:  # Any: as `_save` made it
        if not self._optimisers.fits(state["optimisers"]):
            raise ConfigError(
                f"{self._path} was begun with another optimiser than {self._settings.optimiser!r}; "
                "give the recipe the former, or the run another name, or remove the checkpoint"
            )
        self._optimisers.load_state_dict(state["optimisers"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        if "random" in state:
            restore_random(state["random"], self._ranks.device)
        self._step = self._saved = int(state["step"])
        self._loss = state.get("loss")


class _Stopped(KeyboardInterrupt):
    """All processes were asked to stop."""


def _until(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
