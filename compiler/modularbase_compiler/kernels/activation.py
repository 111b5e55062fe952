"""What stands between a feed-forward's two projections, as expressions: for kernels of any target.

silu(x) = x * sigmoid(x), and gelu's tanh form is the same of another exponent: x * sigmoid(2u),
u = sqrt(2/pi) * (x + 0.044715 x^3).
"""

from __future__ import annotations

import math
from typing import Any, Final

from tvm import tirx

GATED: Final = ("swiglu", "geglu")
"""The activations that multiply their value with an `up`."""

_SLOPE: Final = 2 * math.sqrt(2 / math.pi)
_CUBE: Final = 0.044715


def exponent(x: Any, activation: str, constant: Any) -> Any:
    """Return what the sigmoid of x is taken of; constant(value) makes a value of the kind of x."""
    if activation == "swiglu":
        return x
    return x * (constant(_SLOPE) + constant(_SLOPE * _CUBE) * (x * x))


def activated(x: Any, activation: str) -> Any:
    """Return silu(x) or gelu(x) of a float32 scalar, whichever `activation` applies."""

    def constant(value: float) -> Any:
        return tirx.const(value, "float32")

    return x / (constant(1.0) + tirx.exp(constant(0.0) - exponent(x, activation, constant)))
