"""Divide the memory of a device once, before anything is loaded: resident | slots | hot pages | workspace.

Decides what fits and says what does not. Who allocates takes the sizes from the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modularbase_core.errors import BudgetError

RESIDENT: Final = "resident weights"
SLOTS: Final = "slots"
HOT_PAGES: Final = "hot pages"
WORKSPACE: Final = "workspace"
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bytes that one purpose may allocate: `part` is one of the four parts, `name` what in it."""

    part: str
    name: str
    size_bytes: int


class Budget:
    """The bytes of a device and what is reserved of them; reservations come before allocations."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._reservations: list[Reservation] = []

    @property
    def free_bytes(self) -> int:
        """Bytes not reserved."""
        return self.total_bytes - sum(item.size_bytes for item in self._reservations)

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """What is reserved, in the order it was."""
        return tuple(self._reservations)

    def reserve(self, part: str, name: str, size_bytes: int) -> Reservation:
        """Set bytes aside.

        Raises BudgetError if fewer are free; nothing is reserved then.
        """
        assert size_bytes >= 0
        if size_bytes > self.free_bytes:
            taken = ", ".join(f"{item.name} {mebibytes(item.size_bytes)}" for item in self._reservations)
            need, free = _unequal(size_bytes, self.free_bytes)
            raise BudgetError(
                f"{name} ({part}) needs {need} but {free} of {mebibytes(self.total_bytes)} are free"
                f"{f' beside {taken}' if taken else ''}; raise the memory budget or choose smaller parts"
            )
        self._reservations.append(Reservation(part, name, size_bytes))
        return self._reservations[-1]


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """How the bytes are divided; the sum of `lines` is at most `total_bytes`."""

    total_bytes: int
    lines: tuple[Reservation, ...]
    slot_count: int
    slot_bytes: int
    page_count: int
    page_bytes: int

    @property
    def planned_bytes(self) -> int:
        """Bytes of all lines."""
        return sum(line.size_bytes for line in self.lines)

    def admit(self, pack: str, size_bytes: int) -> None:
        """Check that a pack of `size_bytes` (weights and its pages) fits a slot, before it is loaded.

        Raises BudgetError if it does not.
        """
        if size_bytes > self.slot_bytes:
            need, holds = _unequal(size_bytes, self.slot_bytes)
            raise BudgetError(
                f"pack {pack!r} needs {need} but a slot holds {holds}; raise memory_bytes or use a smaller pack"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "total_bytes": self.total_bytes,
            "planned_bytes": self.planned_bytes,
            "free_bytes": self.total_bytes - self.planned_bytes,
            "lines": [{"part": line.part, "name": line.name, "bytes": line.size_bytes} for line in self.lines],
            "slots": {"count": self.slot_count, "bytes": self.slot_bytes},
            "pages": {"count": self.page_count, "bytes": self.page_bytes},
        }

    def __str__(self) -> str:
        """Lay the plan out as a table."""
        rows = [(f"{line.part}: {line.name}", mebibytes(line.size_bytes)) for line in self.lines]
        rows.append(("free", mebibytes(self.total_bytes - self.planned_bytes)))
        rows.append(("total", mebibytes(self.total_bytes)))
        width, size = max(len(left) for left, _ in rows), max(len(right) for _, right in rows)
        return "\n".join(f"{left:<{width}}  {right:>{size}}" for left, right in rows)


def plan(
    total_bytes: int,
    *,
    resident: Mapping[str, int],
    slot_count: int,
    slot_bytes: int,
    page_bytes: int,
    minimum_pages: int,
    workspace_bytes: int,
    maximum_pages: int | None = None,
) -> BudgetPlan:
    """Divide `total_bytes`; the hot pages get what is left, up to `maximum_pages`.

    resident: bytes by name of what is never evicted. slot_bytes: weights and pages of one on-demand pack.
    page_bytes: one page with everything the base keeps in it. minimum_pages: below this no turn can run.
    Raises BudgetError naming the first part that does not fit.
    """
    assert page_bytes > 0
    assert maximum_pages is None or maximum_pages >= minimum_pages
    budget = Budget(total_bytes)
    for name, size_bytes in resident.items():
        budget.reserve(RESIDENT, name, size_bytes)
    budget.reserve(WORKSPACE, "kernels", workspace_bytes)
    budget.reserve(SLOTS, f"{slot_count} x {mebibytes(slot_bytes)}", slot_count * slot_bytes)
    pages = max(minimum_pages, budget.free_bytes // page_bytes)
    if maximum_pages is not None:
        pages = min(pages, maximum_pages)
    budget.reserve(HOT_PAGES, f"{pages} pages", pages * page_bytes)
    order = (RESIDENT, SLOTS, HOT_PAGES, WORKSPACE)
    lines = tuple(sorted(budget.reservations, key=lambda line: order.index(line.part)))
    return BudgetPlan(total_bytes, lines, slot_count, slot_bytes, pages, page_bytes)


def mebibytes(size_bytes: int) -> str:
    """Format bytes for people: `412 MiB`, with one decimal below 100."""
    value = size_bytes / _MIB
    return f"{value:.0f} MiB" if value >= 99.95 else f"{value:.1f} MiB"


def _unequal(need: int, limit: int) -> tuple[str, str]:
    """Format both in MiB, or in bytes where rounding would make them look equal."""
    if mebibytes(need) != mebibytes(limit):
        return mebibytes(need), mebibytes(limit)
    return f"{need} bytes", f"{limit} bytes"
