"""The training loop: optimisers, schedule, checkpoints that resume exactly, progress.

What is learnt and from what is the stages'; this file only walks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from modularbase_core.train.checkpoints import load_weights

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: warm up, hold, then decay linearly to a fiftieth (WSD, Hu et al., 2024)."""

    steps: int
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def factor(self, step: int) -> float:
        """Return the share of the peak learning rate at `step`."""
        decay = self.decay_share * self.steps
        return min(1.0, (step + 1) / self.warmup_steps, max(0.02, (self.steps - step) / decay))


class Optimisers:
    """Muon (Jordan et al., 2024) on hidden matrices, AdamW on embeddings, adapters, norms and biases."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
        matrices = [p for name, p in learning.items() if p.ndim == 2 and "embedding" not in name]
        others = [p for name, p in learning.items() if not (p.ndim == 2 and "embedding" not in name)]
        self._schedule = schedule
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay)
            self._parts.append((muon, schedule.matrix_rate))
        if others:
            adam = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
            self._parts.append((adam, schedule.other_rate))
        self._parameters = [*matrices, *others]

    def step(self, number: int) -> None:
        """Clip, step and clear the gradients."""
        nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip_norm)
        for optimiser, rate in self._parts:
            for group in optimiser.param_groups:
                group["lr"] = rate * self._schedule.factor(number)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the optimisers' states."""
        return [optimiser.state_dict() for optimiser, _ in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for (optimiser, _), state in zip(self._parts, states, strict=True):
            optimiser.load_state_dict(state)


def train(
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Callable[[int], Iterable[Batch]],
    schedule: Schedule,
    checkpoint: Path,
    *,
    quiet: bool = False,
    save_seconds: float = 240.0,
) -> None:
    """Train `network` in place from its checkpoint, if there is one, to the schedule's end.

    loss_of(ids [W, N+1], learn [W, N+1]) is a scalar; batches(step) yields batches from that step on.
    The checkpoint is written atomically every `save_seconds`, at the end and on Ctrl-C; one that comes inside
    an optimiser step leaves the older checkpoint, so a run that resumes has the bits of one that never stopped.
    """
    optimisers = Optimisers(network, schedule)
    step = _resume(network, optimisers, checkpoint)
    saved = time.monotonic()
    bar = tqdm(total=schedule.steps, initial=step, unit="step", disable=quiet, mininterval=10.0)
    mean, whole = 0.0, True
    try:
        for ids, learn in _until(batches(step), schedule.steps - step):
            loss = loss_of(ids, learn)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            whole = False  # until every optimiser has stepped, the weights belong to no step
            optimisers.step(step)
            step += 1
            whole = True
            mean = loss.item() if mean == 0.0 else 0.98 * mean + 0.02 * loss.item()
            bar.set_postfix(loss=f"{mean:.3f}", tokens=step * learn.numel(), refresh=False)
            bar.update()
            if time.monotonic() - saved > save_seconds:
                _save(network, optimisers, step, checkpoint)
                saved = time.monotonic()
    finally:
        bar.close()
        if whole:
            _save(network, optimisers, step, checkpoint)


def _until(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


def _save(network: nn.Module, optimisers: Optimisers, step: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimisers": optimisers.state_dict(), "step": step}, part)
    part.replace(path)


def _resume(network: nn.Module, optimisers: Optimisers, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    load_weights(network, state["network"], path)
    optimisers.load_state_dict(state["optimisers"])
    return int(state["step"])
