"""In which form a network's matrices are multiplied, and kept in files: names, and which parameters each concerns."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from modularbase_core.config import FORMS
from modularbase_core.sdk.parameters import QUANTISATION_GROUP, Shape

_ADAPTERS: Final = ("input_adapter.weight", "output_adapter.weight")
"""They carry every value between base and pack, and are small beside the layers."""
_LEFT_OUT: Final = {"int8": _ADAPTERS, "int4": (*_ADAPTERS, "head.down.weight", "head.up.weight")}
"""By precision. A pack's part of the head lost as much in int4 as all of its layers: 0.1 to 0.4 % of perplexity."""

_CHOOSING: Final = ".ffn.router.weight"
"""Of a mixture: small, and a wrong choice costs a whole expert."""


def quantised_bits(precision: str) -> int:
    """Return the bits of a quantised value, 0 where none is."""
    return {"int8": 8, "int4": 4}.get(precision, 0)


def quantised_names(shapes: Mapping[str, Shape], precision: str) -> list[str]:
    """Name the parameters that `precision` stores as integers: matrices of whole groups, but for a few."""
    left_out = _LEFT_OUT.get(precision)
    if left_out is None:
        return []
    whole = [name for name, shape in shapes.items() if len(shape) >= 2 and not shape[-1] % QUANTISATION_GROUP]
    return [name for name in whole if name not in left_out and not name.endswith(_CHOOSING) and _has_pair(name, whole)]


def _has_pair(name: str, whole: list[str]) -> bool:
    """Tell whether both matrices of a mixture's experts are of whole groups, where `name` is one of them."""
    stem, _, last = name.rpartition(".")
    return last not in ("gate_up", "down") or {f"{stem}.gate_up", f"{stem}.down"} <= set(whole)


def stored_dtype(name: str, shape: Shape, form: str) -> str:
    """Return what a file of `form` keeps a parameter as: F32, F16, or I8 or U8 beside scales, see `tensorfile`.

    int8: every matrix of whole groups; int4: those that a network multiplies so, and the stacked ones of experts.
    """
    assert form in FORMS, form
    if form == "fp32":
        return "F32"
    if not shape or not all(shape) or shape[-1] % QUANTISATION_GROUP:
        return "F16"
    if form == "int8" and len(shape) >= 2:
        return "I8"
    if form == "int4" and (len(shape) == 3 or quantised_names({name: shape}, form)):
        return "U8"
    return "F16"


def stored_bytes(name: str, shape: Shape, form: str) -> int:
    """Count the bytes of a parameter in a file of `form`, scales included."""
    dtype, count = stored_dtype(name, shape, form), prod(shape)
    if dtype in ("F32", "F16"):
        return count * (4 if dtype == "F32" else 2)
    return count // (1 if dtype == "I8" else 2) + 2 * count // QUANTISATION_GROUP
