"""Which cold pages of one conversation attention would look at, told from bounds of their keys alone.

After Quest (Tang et al., 2024, arXiv 2406.10774): the largest and smallest value of each channel over a page's
keys bound every product of a query with them. Bounds of groups of 16 pages are searched first, so that a million
tokens take milliseconds. What a query is, and where the pages themselves lie, is left to others.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from modularbase_core.errors import SessionError
from modularbase_core.sdk.architecture import PAGE_TOKENS

GROUP_PAGES: Final = 16
# 768 pages to look at for 16 to bring back. Of the 16 best of 62,500 pages of made-up keys, with a subject for every
# 12 pages or so and queries for four of them, 48 groups hold 15.0, 24 hold 14.3 and 96 hold 15.2; the best page was
# in 48 each time.
GROUPS: Final = 48
_LARGEST: Final = 65504.0  # of float16
_CHUNK: Final = 256  # groups widened to float32 at a time: some MB, however long the conversation
# A product of 16 bounds and 64 query rows is where OpenBLAS still uses one thread (up to 2^18 multiplications, so to
# head size 128). Two threads would save 1 ms of a search's 7 on idle cores, but took 120 ms beside one busy program;
# and so the bits of a product depend on no other page.
_BLOCK: Final = 16
_ROWS: Final = 64

_Scalar = TypeVar("_Scalar", bound=np.generic)

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class BoundsIndex:
    """The bounds of the pages held, by absolute page number, in arrays that double.

    A page's row is [L, K, 2 D] float16: the largest of each channel, then the largest of its negative, so that
    max(q, 0) and max(-q, 0) side by side give the bound in one product. Arrays run without gaps from the first page
    held to the last: a missing page takes its place too, and a search depends on the pages held, not on their past.
    """

    def __init__(self, layers: int, kv_heads: int, head_size: int) -> None:
        self._shape = (layers, kv_heads, 2 * head_size)
        self._first = 0  # page number of row 0, a multiple of 16
        self._held = np.zeros(0, np.bool_)
        self._pages = np.zeros((0, *self._shape), np.float16)
        self._groups = np.zeros((0, *self._shape), np.float32)

    def __len__(self) -> int:
        """Count the pages held."""
        return int(np.count_nonzero(self._held))

    def __contains__(self, page: int) -> bool:
        """Tell whether a page is held."""
        place = page - self._first
        return 0 <= place < len(self._held) and bool(self._held[place])

    @property
    def row_bytes(self) -> int:
        """Bytes of one page's row, on disk and in memory."""
        return 2 * int(np.prod(self._shape))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of memory for each token held, once the arrays are full; before that up to twice as many."""
        group_bytes = 2 * self.row_bytes  # float32
        return (self.row_bytes + group_bytes / GROUP_PAGES + 1) / PAGE_TOKENS

    def row(self, keys: Floats) -> list[bytes]:
        """Return the rows of N pages, to be kept beside them and given to `add`.

        keys: [N, L, K, D, 16] float32, un-rotated. Rounded up, so that a bound stays one.
        """
        assert keys.shape[1:] == (*self._shape[:2], self._shape[2] // 2, PAGE_TOKENS), f"keys of {keys.shape}"
        turned = np.ascontiguousarray(np.moveaxis(keys, -1, 0))  # numpy is 15x slower along 16
        largest = np.concatenate([turned.max(axis=0), -turned.min(axis=0)], axis=-1).clip(-_LARGEST, _LARGEST)
        row = largest.astype("<f2")
        # what was rounded down goes to the next number up: a bit more where positive, a bit less where negative
        bits = row.view("<i2")
        bits += (1 + 2 * (bits >> 15)) * (row < largest)
        return [page.tobytes() for page in row]

    def add(self, page: int, row: bytes) -> None:
        """Hold a page; see `add_many`."""
        self.add_many([page], [row])

    def add_many(self, pages: Sequence[int], rows: Sequence[bytes]) -> None:
        """Hold pages, none of them held yet, by the rows that `row` made; in any order, in one call or in many.

        Raises SessionError if a row is not of this base.
        """
        for page, row in zip(pages, rows, strict=True):
            if len(row) != self.row_bytes:
                raise SessionError(
                    f"the key bounds of page {page} take {len(row)} bytes but this base's take {self.row_bytes}; "
                    "another base kept them: begin a new conversation"
                )
        if not rows:
            return
        numbers = np.asarray(pages, np.int64)
        self._cover(int(numbers.min()), int(numbers.max()))
        places = numbers - self._first
        assert not self._held[places].any(), "a page is added twice"
        assert len(set(pages)) == len(pages), "a page is added twice"
        self._held[places] = True
        self._pages[places] = np.frombuffer(b"".join(rows), "<f2").reshape(-1, *self._shape)
        # np.unique takes 0.4 ms of a few numbers
        self._bound_groups(np.array(sorted(set((places // GROUP_PAGES).tolist()))))

    def remove(self, page: int) -> None:
        """Forget a page."""
        assert page in self, f"page {page} is not held"
        place = page - self._first
        self._held[place] = False
        self._pages[place] = 0
        self._bound_groups(np.array([place // GROUP_PAGES]))

    def search(self, queries: Floats, *, before: int, count: int, without: Collection[int] = ()) -> Numbers:
        """Return up to `count` pages with a number below `before`, those that may receive most attention first.

        queries: [R, L, H, D] float32, rotated to the distance at which the pages will lie; H / K neighbours share
        a kv head. A page's score is the attention that its bounds would receive among the pages looked at, summed
        over rows, layers and heads; of equals the lower number comes first. Pages not below `before` and those of
        `without` change nothing: the result is as if they were not held.
        """
        usable = self._usable(before, without)
        groups = np.flatnonzero(usable.any(axis=1))
        if not (groups.size and len(queries) and count > 0):
            return np.zeros(0, np.int64)
        signed = self._signed(queries)
        if groups.size > GROUPS:
            mass = self._attention_of_groups(signed, groups, usable)
            groups = np.sort(groups[np.argsort(-mass, kind="stable")[:GROUPS]])
        among = usable[groups].ravel()
        pages = self._pages.reshape(-1, GROUP_PAGES, *self._shape)[groups]
        mass = _attention(signed, _widened(pages.reshape(-1, *self._shape)), among)
        candidates = np.flatnonzero(among)
        best = candidates[np.argsort(-mass[candidates], kind="stable")[:count]]
        return self._first + groups[best // GROUP_PAGES] * GROUP_PAGES + best % GROUP_PAGES

    def _usable(self, before: int, without: Collection[int]) -> NDArray[np.bool_]:
        """Return which pages may come: [groups, 16]."""
        usable = self._held.copy()
        usable[max(0, before - self._first) :] = False
        if without:
            places = np.fromiter(without, np.int64, len(without)) - self._first
            usable[places[(places >= 0) & (places < len(usable))]] = False
        return usable.reshape(-1, GROUP_PAGES)

    def _signed(self, queries: Floats) -> Floats:
        """Lay queries [R, L, H, D] out as [L, K, 2 D, rows], scaled, what is positive above what is negative."""
        layers, kv_heads, width = self._shape
        rows, _, heads, size = queries.shape
        assert queries.shape[1] == layers, f"queries of {queries.shape}"
        assert (heads % kv_heads, 2 * size) == (0, width), f"queries of {queries.shape}"
        shared = queries.reshape(rows, layers, kv_heads, heads // kv_heads, size).transpose(1, 2, 4, 0, 3)
        scaled = shared.reshape(layers, kv_heads, size, -1).astype(np.float32) * np.float32(size**-0.5)
        return np.concatenate([scaled.clip(min=0), (-scaled).clip(min=0)], axis=2)

    def _attention_of_groups(self, signed: Floats, groups: Numbers, usable: NDArray[np.bool_]) -> Floats:
        """Return the attention that each of `groups` would receive, bounded over its usable pages: [groups]."""
        among = np.arange(-(-len(groups) // _BLOCK) * _BLOCK) < len(groups)
        bounds = np.zeros((len(among), *self._shape), np.float32)
        self._groups.take(groups, axis=0, out=bounds[: len(groups)], mode="clip")  # which needs no second copy
        held = self._held.reshape(-1, GROUP_PAGES)
        partly = np.flatnonzero((held != usable)[groups].any(axis=1))
        bounds[partly] = self._widest(groups[partly], usable)
        return _attention(signed, bounds, among)[: len(groups)]

    def _bound_groups(self, groups: Numbers) -> None:
        held = self._held.reshape(-1, GROUP_PAGES)
        for start in range(0, len(groups), _CHUNK):
            chunk = groups[start : start + _CHUNK]
            self._groups[chunk] = self._widest(chunk, held)

    def _widest(self, groups: Numbers, among: NDArray[np.bool_]) -> Floats:
        """Return the bounds of `groups` over the pages in `among`; 0 where there is none, which is never read."""
        rows = _widened(self._pages.reshape(-1, GROUP_PAGES, *self._shape)[groups])
        rows[~among[groups]] = -np.inf
        widest: Floats = rows.max(axis=1)
        widest[~among[groups].any(axis=1)] = 0
        return widest

    def _cover(self, lowest: int, highest: int) -> None:
        """Make room for these page numbers, keeping what is held; what was given up at either end is let go."""
        if lowest >= self._first and highest < self._first + len(self._held):
            return
        held = np.flatnonzero(self._held.reshape(-1, GROUP_PAGES).any(axis=1))
        start, stop = (int(held[0]), int(held[-1]) + 1) if held.size else (0, 0)
        if held.size:
            lowest = min(lowest, self._first + start * GROUP_PAGES)
            highest = max(highest, self._first + stop * GROUP_PAGES - 1)
        first = lowest // GROUP_PAGES * GROUP_PAGES
        groups = 1 << (highest // GROUP_PAGES - first // GROUP_PAGES).bit_length()
        place = start + (self._first - first) // GROUP_PAGES
        self._groups = _moved(self._groups, start, stop, place, groups)
        pages = [number * GROUP_PAGES for number in (start, stop, place, groups)]
        self._pages, self._held = _moved(self._pages, *pages), _moved(self._held, *pages)
        self._first = first


def _moved(rows: NDArray[_Scalar], start: int, stop: int, place: int, capacity: int) -> NDArray[_Scalar]:
    """Return `capacity` rows with rows[start:stop] from `place` on; the rest is zero, and no memory until written."""
    shape = (capacity, *rows.shape[1:])
    size_bytes = max(1, int(np.prod(shape)) * rows.itemsize)
    # from the system and back to it: what malloc is given back of this size it may keep
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    moved = np.frombuffer(memory, rows.dtype, int(np.prod(shape))).reshape(shape)
    moved[place : place + stop - start] = rows[start:stop]
    return moved


def _widened(rows: NDArray[np.float16]) -> Floats:
    """Return finite float16 as float32, exactly; by its bits, as numpy's own cast takes three times as long."""
    bits = rows.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= -0x70000001  # of the sign, one bit
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # the exponents of both count from 15 and from 127
    return wide


def _attention(signed: Floats, bounds: Floats, among: NDArray[np.bool_]) -> Floats:
    """Return the attention that each of N bounds would receive among them: [N] float32, summed over all queries.

    signed: [L, K, 2 D, rows]; bounds: [N, L, K, 2 D], N a multiple of 16; among: [N], those that take part.
    """
    mass = np.zeros(len(bounds), np.float32)
    blocks = bounds.reshape(-1, _BLOCK, *bounds.shape[1:])
    for layer, kv_head in np.ndindex(signed.shape[:2]):
        for start in range(0, signed.shape[3], _ROWS):
            rows = np.ascontiguousarray(signed[layer, kv_head, :, start : start + _ROWS])
            logits = (blocks[:, :, layer, kv_head] @ rows).reshape(len(bounds), -1)
            logits[~among] = -np.inf
            logits -= logits.max(axis=0)
            np.exp(logits, out=logits)
            mass += np.einsum("nr,r->n", logits, 1 / logits.sum(axis=0))
    return mass
