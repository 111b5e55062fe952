"""What a recipe costs, counted from its shapes: parameters, bytes, arithmetic. Nothing is run here, and no torch."""

from modularbase_core.train.costs.flops import step_flops
from modularbase_core.train.costs.memory import (
    MESSAGE_ROWS,
    Memory,
    checkpoint_bytes,
    memory_of,
    optimiser_bytes,
    shipped_bytes,
)
from modularbase_core.train.costs.parameters import Part, learns, parts_of

__all__ = [
    "MESSAGE_ROWS",
    "Memory",
    "Part",
    "checkpoint_bytes",
    "learns",
    "memory_of",
    "optimiser_bytes",
    "parts_of",
    "shipped_bytes",
    "step_flops",
]
