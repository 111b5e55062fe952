"""The marker that makes a function of a plugin an implementation of a hook."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT: Final = "modularbase"
"""Name of the pluggy project and of the entry-point group that plugins join."""

hookimpl: Final = pluggy.HookimplMarker(PROJECT)
