"""What a run's bits depend on besides recipe and machine: threads, and operations that add in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from modularbase_core.train.costs import on_gpu
from modularbase_core.train.recipe import Recipe


@contextmanager
def repeatable(recipe: Recipe) -> Iterator[None]:
    """Run with the recipe's threads, 0 for torch's own choice, and on a CPU with the same bits each time.

    Compiled code lets threads add to an embedding's gradient as they come, unless it is told not to. On a GPU some
    operations know no fixed order, so nothing is promised there.
    """
    settings: Any = torch.utils.deterministic  # a module of a class of its own, which torch leaves untyped
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = settings.fill_uninitialized_memory
    torch.set_num_threads(recipe.threads or before[0])
    torch.use_deterministic_algorithms(before[1] or not on_gpu(recipe))
    settings.fill_uninitialized_memory = False  # takes time, and nobody reads what nobody wrote
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        settings.fill_uninitialized_memory = fills
