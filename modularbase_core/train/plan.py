"""What a recipe will take on this machine, told before anything starts: parameters, memory, time, disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch

from modularbase_core.train.costs import (
    Memory,
    Part,
    checkpoint_bytes,
    memory_of,
    on_gpu,
    parts_of,
    shipped_bytes,
    step_flops,
)
from modularbase_core.train.recipe import Recipe

READING_SECONDS: Final = 1e-5
"""Of a token of text, from the file to windows; measured on one core with the nano base's mix."""
SAMPLE: Final = 500
"""Messages of a source whose lengths are taken for all."""
_MEMINFO: Final = Path("/proc/meminfo")
_GROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Steps in windows of one length, and the seconds of each and of the first, where they were measured."""

    window: int
    steps: int
    step_flops: int
    step_seconds: float | None = None
    first_seconds: float = 0.0

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole phase, compiling included."""
        return None if self.step_seconds is None else self.steps * self.step_seconds + self.first_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes. memory: in its longest windows. Free bytes are this machine's, None where it tells none."""

    recipe: Recipe
    parts: Sequence[Part]
    memory: Memory
    phases: Sequence[Phase]
    checkpoint_bytes: int
    shipped_bytes: int
    free_memory: int | None
    free_disk: int

    @property
    def parameters(self) -> int:
        """All parameters in memory."""
        return sum(part.parameters for part in self.parts)

    @property
    def learning(self) -> int:
        """The parameters that learn."""
        return sum(part.learning for part in self.parts)

    @property
    def flops(self) -> int:
        """Floating-point operations of all steps."""
        return sum(phase.steps * phase.step_flops for phase in self.phases)

    @property
    def peak_bytes(self) -> int:
        """The most memory that is held at once."""
        return self.memory.peak(checkpointed=self.recipe.checkpoint_activations)

    @property
    def reading_seconds(self) -> float:
        """Seconds until the texts are read."""
        sources = (*self.recipe.mix, *self.recipe.replay)
        return 0.0 if self.recipe.stage == "router" else READING_SECONDS * sum(one.tokens for one in sources)

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run; None where no step was measured."""
        times = [phase.seconds for phase in self.phases]
        known = [one for one in times if one is not None]
        return sum(known) + self.reading_seconds if len(known) == len(times) else None


def plan_recipe(recipe: Recipe, runs: Path, *, data: Path | None = None, measured: bool = True) -> Plan:
    """Count what a recipe takes, resolved as `installed.complete` does; time some steps where memory allows it.

    data: folder of the texts, to count a router's messages; without, as many are taken as the recipe asks for.
    measured: False runs no step.
    """
    rows = None if data is None or recipe.stage != "router" else _message_rows(recipe, data)
    longest = max(length for _, length in recipe.windows)
    plan = Plan(
        recipe=recipe,
        parts=parts_of(recipe),
        memory=memory_of(recipe, longest, rows),
        phases=_phases(recipe),
        checkpoint_bytes=checkpoint_bytes(recipe),
        shipped_bytes=shipped_bytes(recipe),
        free_memory=free_memory(gpu=on_gpu(recipe)),
        free_disk=shutil.disk_usage(_there(runs)).free,
    )
    return plan if not measured or shortfall(plan) else _timed(plan)


def shortfall(plan: Plan) -> str | None:
    """Say in one sentence what this machine has too little of, and what to do; None where all is well."""
    if plan.free_memory is not None and plan.peak_bytes > plan.free_memory:
        has, needs = _size(plan.free_memory), _size(plan.peak_bytes)
        return f"recipe {plan.recipe.name!r} needs about {needs} of memory, but {has} are free; {_way_out(plan)}"
    needed = 2 * plan.checkpoint_bytes
    if needed > plan.free_disk:
        return (
            f"recipe {plan.recipe.name!r} needs {_size(needed)} of disk while a checkpoint is written, but "
            f"{_size(plan.free_disk)} are free; make room or use another runs folder"
        )
    return None


def free_memory(*, gpu: bool) -> int | None:
    """Return the bytes that a process may still take, of the GPU or of the machine; a container's limit counts too."""
    if gpu:
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    limit, used = (_number(_GROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _timed(plan: Plan) -> Plan:
    from modularbase_core.train.measure import measure

    paces = {pace.window: pace for pace in measure(plan.recipe)}
    phases = [
        replace(
            phase,
            step_seconds=paces[phase.window].step_seconds,
            first_seconds=paces[phase.window].first_seconds,
        )
        for phase in plan.phases
    ]
    return replace(plan, phases=phases)


def _message_rows(recipe: Recipe, data: Path) -> int:
    """Count the hidden states that a router reads of its messages, their lengths by a sample."""
    from modularbase_core.sdk.architecture import ROUTED_TOKENS
    from modularbase_core.train.messages import read_messages
    from modularbase_core.train.tokens import load_tokenizer

    tokenizer, rows = load_tokenizer(recipe), 0.0
    for source in recipe.mix:
        messages = read_messages([source], data, recipe.folder, recipe.seed)
        lengths = [len(tokenizer.encode(message.text).ids) for message in messages[:SAMPLE]]
        rows += len(messages) * sum(min(length, 2 * ROUTED_TOKENS) for length in lengths) / len(lengths)
    return round(rows)


def _phases(recipe: Recipe) -> list[Phase]:
    edges = [*recipe.phases(), (recipe.steps, 0)]
    return [
        Phase(window=window, steps=last - first, step_flops=step_flops(recipe, window))
        for (first, window), (last, _) in pairwise(edges)
    ]


def _way_out(plan: Plan) -> str:
    """Name what would make it fit: checkpointed activations, parts of a step, both, or a change of what is trained."""
    recipe, memory, free = plan.recipe, plan.memory, plan.free_memory or 0
    if recipe.stage == "router":
        return "lower the messages of its mix, or its batch_tokens"
    if memory.process + memory.weights + memory.reading > free > memory.process + memory.weights:
        return "make shards of its texts with `modularbase data prepare`"
    longest = max(length for _, length in recipe.windows)
    if not recipe.checkpoint_activations and memory.peak(checkpointed=True) <= free:
        return "set checkpoint_activations = true"
    for keeps_less in sorted({recipe.checkpoint_activations, True}):
        for parts in _parts(recipe):
            if memory_of(replace(recipe, accumulate=parts), longest).peak(checkpointed=keeps_less) <= free:
                also = " and checkpoint_activations = true" if keeps_less > recipe.checkpoint_activations else ""
                return f"set accumulate = {parts}{also}"
    return "train a smaller network in shorter windows, or where there is more memory"


def _parts(recipe: Recipe) -> list[int]:
    """Return the parts that a step of the recipe can be walked in, more than it is now."""
    windows = [recipe.batch_tokens // length for _, length in recipe.windows]
    return [n for n in range(recipe.accumulate + 1, min(windows) + 1) if not any(count % n for count in windows)]


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
