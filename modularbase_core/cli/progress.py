"""A progress bar on standard error for work that happens once, such as compiling."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what is done now, steps done, steps in all).

    On a terminal it draws a bar from its first call on, elsewhere it prints each new phase.
    """
    bar: Any = None  # tqdm ships no types
    told = ""

    def show(phase: str, done: int, total: int) -> None:
        nonlocal bar, told
        if quiet:
            return
        if not sys.stderr.isatty():
            if phase != told:
                told = phase
                click.echo(f"{phase} ({done}/{total})", err=True)
            return
        if bar is None:
            from tqdm import tqdm

            bar = tqdm(total=total, leave=False, bar_format="{desc} {bar} {n}/{total} {elapsed}")
        bar.n, bar.total = done, total
        bar.set_description_str(phase)  # draws

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
