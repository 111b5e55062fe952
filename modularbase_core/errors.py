"""The error tree: every failure that is told to the user in one sentence.

ModularBaseError
├── ConfigError           a setting or flag that is unknown or out of range
├── InputError            what the user gave to a turn: empty, not UTF-8, too long
├── DataError             training or evaluation data that cannot be read
├── TrainingError         a training run that cannot go on
├── ArchitectureError     a network description that makes no sense
├── ManifestError         a manifest that is missing, unreadable or wrong
├── TokenizerError        a tokenizer file that is missing, unreadable or of another kind
├── WeightsError          a weight file that is missing, truncated or of the wrong shape
├── PackError             a pack that cannot be found, resolved or loaded
│   ├── PackIncompatible  a pack made for another base
│   └── PackUnloadable    a pack that is installed but cannot be brought into a slot
├── FetchError            weights that cannot be downloaded or kept
├── PipError              what pip could not do
├── PluginError           an installed plugin whose code cannot be used
├── BudgetError           something that does not fit the planned memory
├── SessionError          a session that cannot be opened, read or kept
│   └── SessionInUse      a session that somebody else has open
└── ArtefactError         a compiled artefact that cannot be built, written or read
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Final

TORCH_REMEDY: Final = "run `pip install 'modularbase[train]'`"
"""What to do where torch is missing: it trains, and compiles networks whose packs bring no graph."""


class ModularBaseError(Exception):
    """Base of every error that is told to the user in one sentence."""


class ConfigError(ModularBaseError):
    """A setting or flag is unknown or out of range."""


class InputError(ModularBaseError):
    """What the user gave to a turn cannot be used."""


class DataError(ModularBaseError):
    """Training or evaluation data cannot be read."""


class TrainingError(ModularBaseError):
    """A training run cannot go on: its loss is no number, or its checkpoint cannot be written."""


class ArchitectureError(ModularBaseError):
    """A network description makes no sense."""


class ManifestError(ModularBaseError):
    """A manifest is missing, unreadable or wrong."""


class TokenizerError(ModularBaseError):
    """A tokenizer file is missing, unreadable or of another kind."""


class WeightsError(ModularBaseError):
    """A weight file is missing, truncated or of the wrong shape."""


class PackError(ModularBaseError):
    """A pack cannot be found, resolved or loaded."""


class PackIncompatible(PackError):  # noqa: N818  # the name says what is wrong
    """A pack was made for another base."""


class PackUnloadable(PackError):  # noqa: N818  # the name says what is wrong
    """A pack that is installed cannot be brought into a slot. pack_id: which; its cause says why."""

    def __init__(self, pack_id: str, cause: ModularBaseError) -> None:
        super().__init__(f"{pack_id} cannot be loaded ({cause})")
        self.pack_id = pack_id


class FetchError(ModularBaseError):
    """Weights cannot be downloaded or kept."""


class PipError(ModularBaseError):
    """Pip could not do what it was asked. output: all that it said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class PluginError(ModularBaseError):
    """An installed plugin's code cannot be used."""


class BudgetError(ModularBaseError):
    """Something does not fit the planned memory."""


class SessionError(ModularBaseError):
    """A session cannot be opened, read or kept."""


class SessionInUse(SessionError):  # noqa: N818  # the name says what is wrong
    """A session is open elsewhere. name: which; pid: the process that has it, None where that is not known yet."""

    def __init__(self, name: str, pid: int | None) -> None:
        where = "this process" if pid == os.getpid() else f"another process (pid {pid or 'unknown'})"
        super().__init__(f"session {name!r} is open in {where}; close it there or use another name")
        self.name, self.pid = name, pid


class ArtefactError(ModularBaseError):
    """A compiled artefact cannot be built, written or read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
