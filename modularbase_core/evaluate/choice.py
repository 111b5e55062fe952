"""Which option of a question is the likeliest answer, without generating one.

Where a question names its options, lettered or as words such as yes and no (`options`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modularbase_core.evaluate.answers import gold_of, plain
from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.likelihood import Done, score_rows
from modularbase_core.evaluate.options import cased_like, lettered, stated
from modularbase_core.evaluate.routing import share
from modularbase_core.evaluate.selection import Selection
from modularbase_core.train.readers.record import Record
from modularbase_core.turn.stages import Route

if TYPE_CHECKING:
    from modularbase_core.train.perplexity import Scorer


# Any: plain JSON values
def choices(
    cases: Sequence[Case],
    rows: Sequence[Selection],
    routes: Sequence[Route | None],
    scorer: Scorer,
    done: Done | None = None,
) -> dict[str, dict[str, Any]]:
    """Return how often the right option is the likeliest one, by row and domain.

    An option stands where the record's own response states its answer ("The answer is C."), or alone as an answer: its
    letter or word by likelihood, and for lettered options also their texts by likelihood per byte ("by_text").
    """
    asked = [(number, *found) for number, case in enumerate(cases) if (found := _options(case))]
    records = [record for _, _, said in asked for record in said]
    owners = [routes[number] for number, _, said in asked for _ in said]
    scored = score_rows(records, rows, owners, scorer, done)
    out: dict[str, dict[str, Any]] = {}
    for row, likelihoods in zip(rows, scored, strict=True):
        at, right = 0, dict[str, list[tuple[bool, bool | None, float]]]()
        for number, (wanted, count), said in asked:
            here, at = likelihoods[at : at + len(said)], at + len(said)
            if not all(one.tokens for one in here):
                continue  # longer than the window, so that its options were cut off
            cost, of_texts = [one.nats for one in here[:count]], [one.nats / one.bytes for one in here[count:]]
            by_text = _least(of_texts) == wanted if of_texts else None
            right.setdefault(cases[number].domain, []).append((_least(cost) == wanted, by_text, 1 / count))
        domains = {name: _chosen(marks) for name, marks in right.items()}
        out[row.name] = {"all": _chosen([one for marks in right.values() for one in marks]), "domains": domains}
    return out


def has_options(case: Case) -> bool:
    """Tell whether a case names options of which one is right."""
    return _options(case) is not None


def _least(costs: Sequence[float]) -> int:
    return min(range(len(costs)), key=costs.__getitem__)


def _chosen(marks: Sequence[tuple[bool, bool | None, float]]) -> dict[str, Any]:
    out = share(sum(right for right, _, _ in marks), len(marks))
    texts = [by_text for _, by_text, _ in marks if by_text is not None]
    if texts:
        out["by_text"] = share(sum(texts), len(texts))
    return {**out, "chance": sum(chance for _, _, chance in marks) / max(1, len(marks))}


def _options(case: Case) -> tuple[tuple[int, int], list[Record]] | None:
    """Return which option is right, how many there are, and the records that say each, then each one's text."""
    gold = gold_of(case.value, case.question, case.response)
    if gold is None or not gold.options or not case.asked:
        return None
    before, after = stated(gold.value, case.response)
    said = [f"{before}{cased_like(one, gold.value) if gold.kind == 'label' else one}{after}" for one in gold.options]
    if gold.kind == "letter":
        said += [text for letter, text in lettered(case.question).items() if letter in gold.options]
    asked = tuple({"role": one.role, "content": one.content} for one in case.asked)
    records = [Record(None, (*asked, {"role": "assistant", "content": text}), "", "") for text in said]
    wanted = [plain(one) for one in gold.options].index(plain(gold.value))
    return (wanted, len(gold.options)), records
