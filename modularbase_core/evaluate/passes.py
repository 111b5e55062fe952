"""pass@k: how likely one of k programs that a model writes for a task passes the task's tests (Chen et al., 2021)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.sandbox import Outcome


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate 1 - C(n-c, k) / C(n, k), as a product that no large number enters.

    samples >= k of one task, of which `passed` passed.
    """
    assert samples >= k
    missed = 1.0
    for left in range(samples - passed + 1, samples + 1):
        missed *= max(0.0, 1.0 - k / left)
    return 1.0 - missed


# Any: plain JSON values
def passes(tasks: Sequence[Case], outcomes: Sequence[Sequence[Outcome]], ks: Sequence[int]) -> dict[str, Any]:
    """Return pass@k by domain and over all, with why programs failed. outcomes: of each task's programs."""
    by_domain: dict[str, list[Sequence[Outcome]]] = {}
    for task, some in zip(tasks, outcomes, strict=True):
        by_domain.setdefault(task.domain, []).append(some)
    return {"all": _cell(outcomes, ks), "domains": {name: _cell(some, ks) for name, some in by_domain.items()}}


def _cell(outcomes: Sequence[Sequence[Outcome]], ks: Sequence[int]) -> dict[str, Any]:
    counts = [(len(some), sum(one.passed for one in some)) for some in outcomes]
    why = Counter(_kind(one) for some in outcomes for one in some)
    out: dict[str, Any] = {f"pass@{k}": sum(pass_at_k(*count, k) for count in counts) / max(1, len(counts)) for k in ks}
    samples, passed = (sum(part) for part in zip(*counts, strict=True)) if counts else (0, 0)
    return {**out, "records": len(counts), "programs": samples, "passed": passed, "ended": dict(why.most_common())}


def _kind(outcome: Outcome) -> str:
    return "passed" if outcome.passed else outcome.reason.partition(":")[0]
