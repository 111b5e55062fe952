"""A progress bar on standard error for work that happens once, such as compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what is done now, steps done, steps in all) that draws a bar from its first call on."""
    bar: Any = None  # tqdm ships no types

    def show(phase: str, done: int, total: int) -> None:
        nonlocal bar
        if quiet:
            return
        if bar is None:
            from tqdm import tqdm

            stream = click.get_text_stream("stderr")
            bar = tqdm(total=total, file=stream, leave=False, bar_format="{desc} {bar} {n}/{total} {elapsed}")
        bar.total = total
        bar.set_description_str(phase, refresh=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
