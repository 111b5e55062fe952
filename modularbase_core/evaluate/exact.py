"""How often the answer that is generated is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modularbase_core.evaluate.answers import Gold, gold_of
from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.generate import Answer
from modularbase_core.evaluate.routing import share


def with_gold(cases: Sequence[Case]) -> list[tuple[Case, Gold]]:
    """Return the cases that ask something and have a right answer, with it."""
    found = ((case, gold_of(case.value, case.question, case.response)) for case in cases if case.asked)
    return [(case, gold) for case, gold in found if gold is not None]


# Any: plain JSON values, here and below
def exact(asked: Sequence[tuple[Case, Gold]], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return accuracies by domain and over all; unanswered: answers that give nothing of the kind that is asked for."""
    marks: dict[str, list[tuple[bool, bool]]] = {}
    for (case, gold), answer in zip(asked, answers, strict=True):
        mark = gold.is_given_in(answer.text), gold.given_in(answer.text) is not None
        marks.setdefault(case.domain, []).append(mark)
    domains = {name: _cell(some) for name, some in marks.items()}
    return {"all": _cell([one for some in marks.values() for one in some]), "domains": domains}


def told(case: Case, gold: Gold, answer: Answer, row: str) -> dict[str, Any]:
    """Return one answer as a line of a report."""
    return {
        "metric": "exact",
        "row": row,
        "where": case.where,
        "domain": case.domain,
        "packs": list(answer.packs),
        "answer": answer.text,
        "ended": answer.reason,
        "wanted": gold.value,
        "given": gold.given_in(answer.text),
        "right": gold.is_given_in(answer.text),
    }


def _cell(marks: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    out = share(sum(right for right, _ in marks), len(marks))
    return {**out, "unanswered": sum(not given for _, given in marks)}
