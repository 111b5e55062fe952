"""Pages to bytes and back, exactly or in less space.

Decides how many bits a hidden state, a key and a value get in each form, and in which order they lie. Which page
takes which form is `tiers`'; keeping the bytes, and knowing that they are the right ones, is `cold`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modularbase_core.sdk.architecture import PAGE_TOKENS

Floats = NDArray[np.floating]
Numbers = NDArray[np.generic]

FORMS: Final = ("exact", "int8", "int4", "summary")
"""From the largest to the smallest. exact: as computed. summary: one mean for all tokens of a page."""

VALUE_GROUP: Final = 32
"""Most channels of a value that share an int4 scale; a head width that 32 does not divide has smaller groups."""
LARGEST: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageShapes:
    """What a page of 16 tokens holds for one base."""

    hidden_size: int
    understanding_layers: int
    fusion_layers: int
    kv_heads: int
    head_size: int

    @property
    def layers(self) -> int:
        """Layers that keep keys and values."""
        return self.understanding_layers + self.fusion_layers

    @property
    def hidden(self) -> tuple[int, ...]:
        """[16, E]."""
        return (PAGE_TOKENS, self.hidden_size)

    @property
    def understanding(self) -> tuple[int, ...]:
        """[L, 2, K, 16 * D]."""
        return (self.understanding_layers, 2, self.kv_heads, PAGE_TOKENS * self.head_size)

    @property
    def fusion(self) -> tuple[int, ...]:
        """[L, 2, K, 16 * D]."""
        return (self.fusion_layers, 2, self.kv_heads, PAGE_TOKENS * self.head_size)

    @property
    def elements(self) -> int:
        """Numbers in a page."""
        return math.prod(self.hidden) + math.prod(self.understanding) + math.prod(self.fusion)


@dataclass(frozen=True, slots=True, eq=False)
class PageValues:
    """The numbers of one page, float32 or float16 and finite; of N pages with a leading axis N on each.

    hidden: [16, E]. understanding, fusion: [L, 2, K, 16 * D], index 0 of the second axis un-rotated keys, stored
    [D, 16], index 1 values, stored [16, D].
    """

    hidden: Floats
    understanding: Floats
    fusion: Floats


def encode(values: PageValues, form: str) -> bytes:
    """Return one page in `form`; see `encode_many`."""
    return encode_many(PageValues(values.hidden[None], values.understanding[None], values.fusion[None]), form)[0]


def encode_many(values: PageValues, form: str) -> list[bytes]:
    """Return N pages in `form`; 16 of them cost little more than one.

    Numbers beyond what a form can say are cut to the largest that it can. A summary is one of full pages: its mean
    is over all 16 tokens.
    """
    count = len(values.hidden)
    if form == "exact":
        parts: list[Numbers] = [values.hidden, values.understanding, values.fusion]
    else:
        layers = (values.understanding, values.fusion)
        wide = values.fusion.shape[-1] // PAGE_TOKENS
        turned = [one[:, :, 0].reshape(*one[:, :, 0].shape[:-1], wide, PAGE_TOKENS).swapaxes(-1, -2) for one in layers]
        keys = np.ascontiguousarray(np.concatenate(turned, axis=1, dtype=np.float32))
        rows = np.concatenate([one[:, :, 1] for one in layers], axis=1, dtype=np.float32).reshape(keys.shape)
        parts = _ENCODERS[form](values.hidden.astype(np.float32, copy=False), keys, rows)
    packed = np.concatenate([_as_bytes(part, count) for part in parts], axis=1)
    return [row.tobytes() for row in packed]


def decode(data: bytes | memoryview, shapes: PageShapes, form: str, dtype: DTypeLike | None = None) -> PageValues:
    """Return the page that `data` holds; see `decode_many`."""
    pages = decode_many([data], shapes, form, dtype)
    return PageValues(pages.hidden[0], pages.understanding[0], pages.fusion[0])


def decode_many(
    data: Sequence[bytes | memoryview], shapes: PageShapes, form: str, dtype: DTypeLike | None = None
) -> PageValues:
    """Return N >= 1 pages of one form as arrays of their own.

    dtype: float32 or float16; if not given, an exact page's own and float32 for the other forms. A summary comes
    back as 16 equal tokens, so that in attention the mean counts 16-fold.
    """
    half = form == "exact" and len(data[0]) == encoded_bytes(shapes, form, np.float16)
    stored = np.dtype(np.float16 if half else np.float32)
    wanted = stored if dtype is None else np.dtype(dtype)
    assert {len(page) for page in data} == {encoded_bytes(shapes, form, stored)}, f"these are no pages of form {form}"
    fields = _Fields(np.frombuffer(b"".join(data), np.uint8).reshape(len(data), -1))
    if form == "exact":
        arrays = [fields.take(stored, shape) for shape in (shapes.hidden, shapes.understanding, shapes.fusion)]
        return PageValues(*(_cut(array, wanted) for array in arrays))
    each = (shapes.layers, shapes.kv_heads, PAGE_TOKENS, shapes.head_size)
    hidden, keys, rows = _DECODERS[form](fields, shapes.hidden, each)
    tree = np.empty((len(data), shapes.layers, *shapes.understanding[1:]), wanted)
    swapped = (*keys.shape[:-2], shapes.head_size, PAGE_TOKENS)
    tree[:, :, 0].reshape(swapped)[...] = _cut(keys, wanted).swapaxes(-1, -2)
    tree[:, :, 1].reshape(rows.shape)[...] = _cut(rows, wanted)
    split = shapes.understanding_layers
    return PageValues(_cut(hidden, wanted), tree[:, :split], tree[:, split:])


def transcode(data: bytes | memoryview, shapes: PageShapes, form: str, into: str) -> bytes:
    """Return a page of one form in a smaller one."""
    return encode(decode(data, shapes, form), into)


def encoded_bytes(shapes: PageShapes, form: str, dtype: DTypeLike = np.float16) -> int:
    """Return the bytes of a page in `form`; `dtype` is what an exact one is stored in."""
    heads, wide = shapes.layers * shapes.kv_heads, shapes.head_size
    if form == "exact":
        return shapes.elements * np.dtype(dtype).itemsize
    if form == "summary":
        return 2 * (shapes.hidden_size + 2 * heads * wide)
    hidden = PAGE_TOKENS * (shapes.hidden_size + 2)
    if form == "int8":
        return hidden + heads * (2 * PAGE_TOKENS * wide + 2 * wide + 2 * PAGE_TOKENS)
    assert form == "int4", f"no such form: {form}"
    return hidden + heads * (PAGE_TOKENS * wide + 4 * wide + 4 * PAGE_TOKENS * (wide // _group(wide)))


# hidden: [N, 16, E]; keys and rows (values): [N, L, K, 16, D], the keys turned, as numpy is 4x slower along 16


def _int8_parts(hidden: Floats, keys: Floats, rows: Floats) -> list[Numbers]:
    return [*_symmetric(hidden, -1), *_symmetric(keys, -2), *_symmetric(rows, -1)]


def _int4_parts(hidden: Floats, keys: Floats, rows: Floats) -> list[Numbers]:
    # KIVI (Liu et al. 2024, arXiv 2402.02750): the outliers of keys stay in their channels, those of values do not.
    # Hidden states keep 8 bits: a pack that is installed later starts from them and computes its own keys and values
    # through 4 to 8 layers, where errors grow; and they are but a fifth of an int8 page (nano).
    grouped = rows.reshape(*rows.shape[:-1], -1, _group(rows.shape[-1]))
    return [*_symmetric(hidden, -1), *_asymmetric(keys, -2), *_asymmetric(grouped, -1)]


def _summary_parts(hidden: Floats, keys: Floats, rows: Floats) -> list[Numbers]:
    return [_cut(numbers.mean(-2, dtype=np.float64), _FLOAT16) for numbers in (hidden, keys, rows)]


_ENCODERS: Final = {"int8": _int8_parts, "int4": _int4_parts, "summary": _summary_parts}


def _symmetric(numbers: Floats, axis: int) -> list[Numbers]:
    """Return a scale for each run along `axis`, and its steps from zero in [-127, 127]."""
    scale = _cut(_largest(numbers, axis) / 127, _FLOAT16)
    steps = numbers * _inverse(scale)
    np.rint(steps, out=steps)
    # float16 rounds a subnormal scale by up to a half and cuts one beyond 65504: there a step could pass 127
    if np.any((scale > 0) & (scale < _LEAST_NORMAL)) or scale.max(initial=0) >= LARGEST:
        np.clip(steps, -127, 127, out=steps)
    return [scale, steps.astype(np.int8)]


def _asymmetric(numbers: Floats, axis: int) -> list[Numbers]:
    """Return a scale and a zero point for each run along `axis`, and its steps from there, two in a byte."""
    zero = _cut(_reduce(np.minimum, numbers, axis), _FLOAT16)
    base = zero.astype(np.float32)
    scale = _cut((_reduce(np.maximum, numbers, axis) - base) / 15, _FLOAT16)
    steps = numbers - base
    steps *= _inverse(scale)
    np.rint(steps, out=steps)
    nibbles = np.clip(steps, 0, 15, out=steps).astype(np.uint8).reshape(len(steps), -1)
    half = nibbles.shape[1] // 2  # the first half of a page with the second: each lies together in memory
    return [scale, zero, nibbles[:, :half] | nibbles[:, half:] << 4]


_FLOAT16: Final = np.dtype(np.float16)
_LEAST_NORMAL: Final = np.finfo(np.float16).smallest_normal


def _largest(numbers: Floats, axis: int) -> Floats:
    """Return the largest amount of finite float32 along `axis`; as integers, which numpy compares 2 to 5x faster."""
    amounts = numbers.view(np.int32) & 0x7FFFFFFF
    largest: Floats = amounts.max(axis, keepdims=True).view(np.float32)
    return largest


def _reduce(extreme: np.ufunc, numbers: Floats, axis: int) -> Floats:
    # halving takes long rows of numbers at a time where `max(axis)` takes a few
    while numbers.shape[axis] > 1 and numbers.shape[axis] % 2 == 0:
        numbers = extreme(*np.split(numbers, 2, axis))
    reduced: Floats = extreme.reduce(numbers, axis=axis, keepdims=True)
    return reduced


def _inverse(scale: Floats) -> Floats:
    wide = scale.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide > 0)


def _cut(numbers: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return `numbers` as `dtype`, no infinity among them."""
    if dtype == np.float16 and numbers.dtype != np.float16:
        numbers = np.clip(numbers, -LARGEST, LARGEST)
    return numbers.astype(dtype, copy=False)


def _group(head_size: int) -> int:
    return math.gcd(VALUE_GROUP, head_size)


def _as_bytes(part: Numbers, count: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(part).reshape(count, -1).view(np.uint8)


class _Fields:
    """Reads N pages field by field, in the order in which they were written."""

    def __init__(self, pages: NDArray[np.uint8]) -> None:
        self._pages, self._at = pages, 0

    def take(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        first, self._at = self._at, self._at + math.prod(shape) * np.dtype(dtype).itemsize
        return self._pages[:, first : self._at].copy().view(dtype).reshape(len(self._pages), *shape)

    def symmetric(self, shape: tuple[int, ...], axis: int) -> Floats:
        scale = self.take(_FLOAT16, _scales(shape, axis)).astype(np.float32)
        steps = self.take(np.int8, shape).astype(np.float32)
        steps *= scale
        return steps

    def asymmetric(self, shape: tuple[int, ...], axis: int) -> Floats:
        scale, zero = (self.take(_FLOAT16, _scales(shape, axis)).astype(np.float32) for _ in range(2))
        packed = self.take(np.uint8, (math.prod(shape) // 2,))
        steps = np.concatenate([packed & 15, packed >> 4], axis=1).reshape(-1, *shape).astype(np.float32)
        steps *= scale
        steps += zero
        return steps

    def mean(self, shape: tuple[int, ...]) -> Floats:
        return self.take(_FLOAT16, _scales(shape, -2)).repeat(PAGE_TOKENS, axis=-2)


def _scales(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape of what there is one of for each run along `axis`."""
    one = list(shape)
    one[axis] = 1
    return tuple(one)


def _read_int8(fields: _Fields, hidden: tuple[int, ...], rows: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    return fields.symmetric(hidden, -1), fields.symmetric(rows, -2), fields.symmetric(rows, -1)


def _read_int4(fields: _Fields, hidden: tuple[int, ...], rows: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    group = _group(rows[-1])
    grouped = (*rows[:-1], rows[-1] // group, group)
    read = fields.symmetric(hidden, -1), fields.asymmetric(rows, -2), fields.asymmetric(grouped, -1)
    return read[0], read[1], read[2].reshape(-1, *rows)


def _read_summary(fields: _Fields, hidden: tuple[int, ...], rows: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    return fields.mean(hidden), fields.mean(rows), fields.mean(rows)


_DECODERS: Final = {"int8": _read_int8, "int4": _read_int4, "summary": _read_summary}
