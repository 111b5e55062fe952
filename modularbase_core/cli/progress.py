"""Progress bars on standard error for work that happens once, such as compiling and downloading."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress_bar(*, quiet: bool = False, lines: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what is done now, steps done, steps in all).

    On a terminal it draws a bar from its first call on, elsewhere it prints each new phase, if `lines`.
    """
    bar: Any = None  # tqdm ships no types
    told = ""

    def show(phase: str, done: int, total: int) -> None:
        nonlocal bar, told
        if quiet:
            return
        if not sys.stderr.isatty():
            if lines and phase != told:
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


@contextmanager
def byte_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what is fetched now, bytes done, bytes in all or 0).

    On a terminal it draws a bar with rate and remaining time, elsewhere it prints each new name once.
    """
    bar: Any = None  # tqdm ships no types
    told = ""

    def show(name: str, done: int, total: int) -> None:
        nonlocal bar, told
        if quiet:
            return
        if name != told:
            told = name
            if bar is not None:
                bar.close()
                bar = None
            if not sys.stderr.isatty():
                click.echo(f"{name} ({total / 1e6:.1f} MB)" if total else name, err=True)
        if not sys.stderr.isatty():
            return
        if bar is None:
            from tqdm import tqdm

            # what is there already is no part of the rate
            bar = tqdm(desc=name, total=total or None, initial=done, unit="B", unit_scale=True, leave=False)
        bar.total = total or None
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
