"""What gives way when a cold store is full: the least important pages become summaries, then they are dropped.

A page that is pinned, or kept exactly, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from modularbase_core.context.holdings import Holdings
from modularbase_core.context.record import PageRecord

Shrink = Callable[[str, bytes], bytes | None]
"""Given a form and a payload, returns the payload as a summary, or None if it cannot be one."""

FULL: Final = 0.9
"""Share of the limit above which room is made: LMDB writes beside what it replaces, and needs space to free space."""
MORE: Final = 0.05
"""Share of the limit that is freed beyond what is needed, so that not every write makes room again."""
AT_ONCE: Final = 64
"""Pages that make room in one transaction."""


@dataclass(frozen=True, slots=True)
class Step:
    """A page that gives way: to `smaller`, or altogether."""

    index: int
    freed_bytes: int
    smaller: PageRecord | None = None


def summaries(
    holdings: Holdings, page: Callable[[int], PageRecord | None], shrink: Shrink, block_bytes: int
) -> Iterator[Step]:
    """Yield the least important pages as summaries; those that `shrink` makes no smaller are left out."""
    for index in holdings.least_important(("int8", "int4")):
        record = page(index)
        payload = shrink(record.form, record.payload) if record else None
        if record and payload is not None and len(payload) < len(record.payload):
            freed = extent(len(record.payload), block_bytes) - extent(len(payload), block_bytes)
            yield Step(index, freed, replace(record, form="summary", payload=payload))


def drops(holdings: Holdings, payload_bytes: Callable[[int], int], block_bytes: int) -> Iterator[Step]:
    """Yield the least important pages to be dropped."""
    for index in holdings.least_important(("int8", "int4", "summary")):
        yield Step(index, extent(payload_bytes(index), block_bytes))


def next_steps(steps: Iterator[Step], wanted_bytes: int) -> list[Step]:
    """Return the steps of one transaction, no more than free `wanted_bytes`."""
    batch: list[Step] = []
    while wanted_bytes > 0 and len(batch) < AT_ONCE and (step := next(steps, None)):
        batch.append(step)
        wanted_bytes -= step.freed_bytes
    return batch


def extent(value_bytes: int, block_bytes: int) -> int:
    """Return the bytes that a value takes in the file: one longer than half a block has blocks of its own."""
    if value_bytes < block_bytes // 2:
        return value_bytes + 32
    return -(-(value_bytes + 16) // block_bytes) * block_bytes
