"""What a recipe costs, counted from its shapes: parameters, bytes, arithmetic. Nothing is run here."""

from modularbase_core.train.costs.flops import step_flops
from modularbase_core.train.costs.memory import (
    MESSAGE_ROWS,
    Memory,
    checkpoint_bytes,
    memory_of,
    on_gpu,
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
    "on_gpu",
    "optimiser_bytes",
    "parts_of",
    "shipped_bytes",
    "step_flops",
]
