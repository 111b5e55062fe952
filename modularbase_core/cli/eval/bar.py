"""A progress bar with rate and remaining time, on a terminal alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def rate_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what is done now, how many are done, of how many or 0); each new `what` is a new bar."""
    if quiet or not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from tqdm import tqdm

    bar: Any = None  # tqdm ships no types
    told = ""

    def show(phase: str, done: int, total: int) -> None:
        nonlocal bar, told
        if bar is None or phase != told or done < bar.n:
            if bar is not None:
                bar.close()
            told = phase
            bar = tqdm(desc=phase, total=total or None, leave=False)
        bar.total = total or None
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
