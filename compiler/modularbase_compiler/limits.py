"""The largest call that a program takes: what bounds its symbolic dimensions, and so its workspace."""

from __future__ import annotations

from typing import Final

from modularbase_core.sdk.architecture import PAGE_TOKENS, Architecture, RouterArchitecture

TOKENS: Final = 512
SEQUENCES: Final = 32
LOGIT_ROWS: Final = 64  # decode asks for one a sequence; 512 would keep 16 MB of logits allocated
_PAGES: Final = 1 << 24  # of a pool; bounds no workspace


def call_limits(architecture: Architecture) -> dict[str, int]:
    """Return the largest T, B, R and M (pages a sequence may see) of a call."""
    limits = {"T": TOKENS, "B": SEQUENCES, "R": LOGIT_ROWS}
    if not isinstance(architecture, RouterArchitecture):
        limits["M"] = architecture.window.trained_tokens // PAGE_TOKENS
    return limits


def dimension_bounds(architecture: Architecture) -> dict[str, int]:
    """Return the upper bound of every symbolic dimension."""
    return {**call_limits(architecture), "P": _PAGES}
