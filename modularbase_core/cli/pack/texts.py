"""Bring an author's texts into a new pack's project: most to learn from, some held out to measure with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from modularbase_core.errors import DataError

LEARNT, HELD_OUT = "texts", "held_out"
"""Folders under the project's data/."""
ONE_IN: Final = 20
"""Files held out: every twentieth in the order of their names."""


def bring_texts(source: Path, data: Path) -> tuple[int, int]:
    """Copy what can be read of `source`, a folder or a file, into `data`.

    Returns how many files are there to learn from, and how many are held out. Raises DataError where there is none.
    """
    from modularbase_core.train.readers.files import find_files

    paths = [found.path for found in find_files(source)]
    learnt = 0
    for number, path in enumerate(paths):
        held_out = number % ONE_IN == ONE_IN - 1
        learnt += not held_out
        below = path.relative_to(source) if source.is_dir() else Path(path.name)
        target = data / (HELD_OUT if held_out else LEARNT) / below
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise DataError(f"{path} cannot be copied into the project ({error.strerror})") from error
    return learnt, len(paths) - learnt
