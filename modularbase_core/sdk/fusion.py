"""How several packs' outputs become one: a weight for each pack at each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modularbase_core.errors import PluginError


@dataclass(frozen=True, slots=True)
class Fusion:
    """A way of blending, found by its name.

    weigh(weights, gram) returns [T, N] float32, whose rows should add up to 1: what share each of N packs has in
    each of T tokens; or [N], the same for every token. weights: [N], the route's, heaviest first. gram: [T, N, N],
    the inner products of the packs' outputs, divided by their width; None unless `compares`. Arrays are numpy's.
    Called for every token; never for a single pack, which passes untouched. A token's shares must not depend on the
    other tokens of a call: they may be another conversation's. One that raises is replaced by the mean.

    Raises PluginError on an empty name, and on a `weigh` that cannot be called.
    """

    name: str
    weigh: Callable[[Any, Any], Any]  # Any: numpy arrays, which this package does not import
    compares: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise PluginError(f"a fusion is named {self.name!r}; use a word")
        if not callable(self.weigh):
            raise PluginError(f"the fusion {self.name!r} weighs by {self.weigh!r}; use a function")
