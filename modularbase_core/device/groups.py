"""Values as small integers with a scale for 32 of them along the last axis, and back.

What weight files hold and what the kernels' layouts are made of. What came from integers becomes the same values again,
so a layout made from float32 loses nothing that the file held.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.sdk.parameters import QUANTISATION_GROUP

Floats = NDArray[np.float32]
Quantised = tuple[NDArray[np.int8], NDArray[np.float16]]

_INT4_DIVISORS: Final = (8.0, 7.5, 7.0, 8.5, 9.0)
"""What the greatest value of a group may be divided into; the first is exact for it."""
_REFINED: Final = 3
_FEW_BITS: Final = 2.0**-16
"""A float16 below this has at most 8 bits."""


def quantise_groups(values: Floats, bits: int = 8) -> Quantised:
    """Quantise by groups of 32 along the last axis: integers of `bits`, and a scale for each group.

    int8: symmetric, the greatest value is 127. int4: -8..7, where the value of the greatest size is -8 (as Q4_0 of
    llama.cpp) or a little beyond, whatever makes the least square error.
    """
    groups = values.reshape(*values.shape[:-1], -1, QUANTISATION_GROUP).astype(np.float32)
    whole, scale = _quantise_int4(groups) if bits == 4 else _quantise_int8(groups)
    return whole.reshape(values.shape), scale.astype("<f2")


def dequantise_groups(values: NDArray[np.int8], scale: NDArray[np.floating]) -> Floats:
    """Return integers times their scales as float32."""
    return _scaled(values.astype(np.float32), scale)


def pack_int4(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Put values of -8..7, [..., K], two into a byte [..., K/2]: the first in its low half, each plus 8."""
    unsigned = (values + np.int8(8)).view(np.uint8)
    return unsigned[..., 0::2] | unsigned[..., 1::2] << np.uint8(4)


def dequantise_int4(packed: NDArray[np.uint8], scale: NDArray[np.floating]) -> Floats:
    """Return values that `pack_int4` packed times their scales as float32."""
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.float32)
    values[..., 0::2] = packed & 15
    values[..., 1::2] = packed >> 4
    values -= 8
    return _scaled(values, scale)


def _scaled(values: Floats, scale: NDArray[np.floating]) -> Floats:
    groups = values.reshape(*scale.shape, QUANTISATION_GROUP)
    groups *= scale.astype(np.float32)[..., None]
    return groups.reshape(values.shape)


def _quantise_int8(groups: Floats) -> Quantised:
    exact = np.abs(groups).max(-1) / 127
    scale = exact.astype(np.float16)
    # rounded up, so that no value leaves -127..127 and the error stays within half a scale
    scale = np.where(scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    # the greatest value may then be well under 127, and once more rounded up from there, a scale of few bits may be
    # one step less than it was; it is the step above if all values are whole in that and not in this
    few = (scale > 0) & (scale < _FEW_BITS)
    if few.any():
        those, above = groups[few], np.nextafter(scale[few], np.float16(np.inf))
        scale[few] = np.where(_are_whole(those, above) & ~_are_whole(those, scale[few]), above, scale[few])
    divisor = np.where(scale == 0, np.float16(1), scale).astype(np.float32)
    return np.rint(groups / divisor[..., None]).astype(np.int8), scale


def _are_whole(groups: Floats, scale: NDArray[np.float16]) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = (np.fmod(groups, scale.astype(np.float32)[..., None]) == 0).all(-1)
    return whole


def _quantise_int4(groups: Floats) -> Quantised:
    place = np.abs(groups).argmax(-1)[..., None]
    greatest = np.take_along_axis(groups, place, -1)[..., 0]
    best, scale = np.full(greatest.shape, np.inf, np.float32), np.zeros(greatest.shape, np.float16)
    for divisor in _INT4_DIVISORS:
        tried = (greatest / np.float32(-divisor)).astype(np.float16)
        # the greatest becomes -8 or -7 even where float16 has few bits: by one of both the scale is found again
        beyond = 7 * np.abs(tried.astype(np.float32)) > np.abs(greatest)
        tried = np.where(beyond, np.nextafter(tried, np.float16(0)), tried)
        rest = _int4_steps(groups, tried)
        rest *= tried.astype(np.float32)[..., None]
        rest -= groups
        error = np.einsum("...i,...i->...", rest, rest)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
        if not best.any():  # as of what was int4 before
            break
    whole = _int4_steps(groups, scale)
    for _ in range(_REFINED if best.any() else 0):  # the scale that fits these integers best, then integers that fit it
        squares = np.einsum("...i,...i->...", whole, whole)
        fitted = (np.einsum("...i,...i->...", groups, whole) / np.maximum(squares, 1)).astype(np.float16)
        steps = _int4_steps(groups, fitted)
        rest = steps * fitted.astype(np.float32)[..., None] - groups
        error = np.einsum("...i,...i->...", rest, rest)
        # -8 or -7 stays in use, so that the scale is found again
        better = (error < best) & (np.abs(steps).max(-1) >= 7)
        best[better], scale[better], whole[better] = error[better], fitted[better], steps[better]
    return whole.astype(np.int8), scale


def _int4_steps(groups: Floats, scale: NDArray[np.float16]) -> Floats:
    steps: Floats = groups / np.where(scale == 0, np.float16(1), scale).astype(np.float32)[..., None]
    np.rint(steps, out=steps)
    return np.clip(steps, -8, 7, out=steps)
