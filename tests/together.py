"""What processes started by torchrun do in `tests/train/test_parallel.py`: train one language model, and go on with it.

    torchrun --nproc-per-node 2 tests/together.py FOLDER CASE...

A case is NAME:KEY=VALUE,...; from FOLDER/NAME.pt, where it is there, the run goes on. How a case ended that failed is
in FOLDER/NAME-RANK.txt.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from modularbase_core.errors import ModularBaseError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.loop import Batch, Settings, train
from modularbase_core.train.schedule import Schedule

STEPS = 4


def language(*, frozen_base: bool = False) -> Whole:
    torch.manual_seed(0)
    blocks = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
    base = Base(BaseArchitecture(blocks=blocks, vocabulary_size=100, understanding_layers=1, fusion_layers=1))
    return Whole(base, Pack(PackArchitecture(base_hidden_size=64, blocks=blocks, layers=2)), 0, frozen_base=frozen_base)


def texts(step: int) -> Iterator[Batch]:
    """Yield four windows, of which other numbers of tokens count."""
    while True:
        random = torch.Generator().manual_seed(step)
        learn = torch.rand(4, 17, generator=random) < torch.tensor([0.9, 0.2, 0.6, 0.1])[:, None]
        yield torch.randint(0, 100, (4, 17), generator=random), learn
        step += 1


def walk(checkpoint: Path, settings: Settings, *, first: int = STEPS, frozen_base: bool = False) -> None:
    """Train to the end, or `first` steps from where the checkpoint stands."""
    model = language(frozen_base=frozen_base)
    loss = Loss(model, compiled=settings.parallel == "fsdp", precision=settings.precision)  # which walks without
    schedule = Schedule(steps=STEPS, warmup_steps=1)
    train(model, loss, lambda step: islice(texts(step), first), schedule, checkpoint, settings=settings, quiet=True)


def stopped(checkpoint: Path, settings: Settings, rank: int) -> None:
    """Train; the second process alone is asked to stop, in its third step."""

    def batches(step: int) -> Iterator[Batch]:
        for number, batch in enumerate(texts(step)):
            if (rank, number) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    model = language()
    loss = Loss(model, compiled=False, precision=settings.precision)
    train(model, loss, batches, Schedule(steps=STEPS, warmup_steps=1), checkpoint, settings=settings, quiet=True)


def case_of(text: str) -> tuple[str, Settings]:
    """Return name and settings."""
    name, _, rest = text.partition(":")
    given = dict(word.split("=") for word in rest.split(",") if word)
    return name, Settings(
        device="cpu",
        precision="fp32",
        **{key: value if key in ("parallel", "optimiser") else json.loads(value) for key, value in given.items()},
    )


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for number, (name, settings) in enumerate(map(case_of, sys.argv[2:])):
        path, frozen = folder / f"{name}.pt", name.startswith("frozen")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if name.startswith("full"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            if name.startswith("stopped"):
                stopped(path, settings, rank)
            if not name.startswith("on") and not path.exists():
                walk(path, settings, first=2, frozen_base=frozen)
                if rank == 0:
                    shutil.copy(path, folder / f"{name}-half.pt")
                torch.distributed.barrier()
            walk(path, settings, frozen_base=frozen)
        except (ModularBaseError, KeyboardInterrupt) as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            (folder / f"{name}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if number == len(sys.argv) - 3:
            torch.distributed.barrier()


if __name__ == "__main__":
    main()
