"""Run the metrics that are asked for over the rows that are asked for.

Each metric's result is plain JSON values: by row (`selection`), over all records and by domain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from modularbase_core.errors import DataError
from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.choice import choices, has_options
from modularbase_core.evaluate.exact import exact, told, with_gold
from modularbase_core.evaluate.generate import Answer, Asked, answers
from modularbase_core.evaluate.model import Model, Progress
from modularbase_core.evaluate.passes import passes
from modularbase_core.evaluate.perplexities import perplexities
from modularbase_core.evaluate.routing import routes_of, routing
from modularbase_core.evaluate.sandbox import Limits, Sandbox
from modularbase_core.evaluate.selection import Selection, without_packs
from modularbase_core.evaluate.settings import EvaluationSettings
from modularbase_core.evaluate.tasks import checks_of, program_of
from modularbase_core.turn.route import force
from modularbase_core.turn.stages import Route

LACKING: Final = {
    "perplexity": "no record has a text, or a response to a prompt; give one of them",
    "routing": "no record names its domain; give records a field domain",
    "exact": "no record has a right answer; give it as final, or in the response as `#### 42` or `The answer is 42.`",
    "choice": "no record names options and the right one; write them as lines `A) ...`, or answer yes or no",
    "pass@k": "no record brings tests; give test and entry_point, test_list, or asserts in the prompt",
}
"""What to tell where a metric has nothing to measure."""


@dataclass(slots=True)
class Results:
    """What was measured. metrics, seconds: by metric; answers: each generated answer, a line of a report."""

    metrics: dict[str, Any] = field(default_factory=dict)  # Any: plain JSON values
    seconds: dict[str, float] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Evaluation:
    """One evaluation: `run` it."""

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        rows: Sequence[Selection],
        settings: EvaluationSettings,
        progress: Progress,
    ) -> None:
        self._model, self._cases, self._rows = model, list(cases), list(rows)
        self._settings, self._progress = settings, progress
        self._results = Results()

    def run(self) -> Results:
        """Measure; raises DataError where a metric that was named has nothing to measure."""
        metrics: dict[str, Callable[[], Any]] = {
            "perplexity": self._perplexity,
            "routing": self._routing,
            "choice": self._choice,
            "exact": self._exact,
            "pass@k": self._passes,
        }
        for name in self._settings.metrics:  # before anything is computed
            if not any(self._has(name, case) for case in self._cases):
                raise DataError(LACKING[name])
        by_default = ("perplexity", "routing") if any(case.labelled for case in self._cases) else ("perplexity",)
        wanted = self._settings.metrics or by_default
        for name, measure in metrics.items():
            if name in wanted:
                begun = time.perf_counter()
                self._results.metrics[name] = measure()
                self._results.seconds[name] = round(time.perf_counter() - begun, 3)
        return self._results

    def _has(self, metric: str, case: Case) -> bool:
        if metric == "routing":
            return case.labelled
        if metric == "exact":
            return bool(with_gold([case]))
        if metric == "choice":
            return has_options(case)
        if metric == "pass@k":
            return bool(case.asked and checks_of(case))
        return case.record.text is not None or any(one["role"] == "assistant" for one in case.record.messages)

    @cached_property
    def _routed(self) -> list[Route | None]:
        return routes_of(self._cases, self._model.messages, self._progress)

    def _perplexity(self) -> dict[str, Any]:
        baseline = without_packs(self._model.lineup)
        rows = [*([] if baseline in self._rows else [baseline]), *self._rows]
        return self._likely("perplexity", perplexities, rows, 1)

    def _choice(self) -> dict[str, Any]:
        return self._likely("choice", choices, self._rows, 0)

    def _likely(
        self, name: str, measure: Callable[..., dict[str, Any]], rows: list[Selection], total: int
    ) -> dict[str, Any]:
        """Measure what rests on likelihoods. total: 1 where the records to be read are known beforehand."""
        cases = [case for case in self._cases if self._has(name, case)]
        if not cases:
            raise DataError(LACKING[name])
        fallback = force([self._model.lineup.general_chat.id])
        routes: list[Route] = [fallback] * len(cases)
        if any(not row.packs for row in rows):
            routed = zip(self._cases, self._routed, strict=True)
            routes = [route or fallback for case, route in routed if self._has(name, case)]
            lost = sum(route is None for route in self._routed)
            if lost:
                self._note(
                    f"{lost} of {len(self._cases)} records cannot be routed (too long, or empty); general chat answers"
                )
        needed = {pack for row in rows for route in routes for pack in row.blend(route)}
        scorer = self._model.scorer(sorted(needed))
        read = 0

        def done(count: int) -> None:
            nonlocal read
            read += count
            self._progress(name, read, len(cases) if total else 0)

        return measure(cases, rows, routes, scorer, done)

    def _routing(self) -> dict[str, Any]:
        out = routing(self._cases, self._routed, self._model.catalog, self._model.lineup)
        general = self._model.lineup.general_chat
        for domain, pack in out["packs"].items():
            if pack == general.id and domain not in (general.id, *general.manifest.aliases):
                self._note(f"no pack is called {domain!r}, so its messages belong to {general.id}")
        return out

    def _exact(self) -> dict[str, Any]:
        asked = with_gold(self._cases)
        prompts = [(case, 0) for case, _ in asked]
        out = {}
        for row, given in self._generated("exact", prompts, several=False):
            out[row.name] = exact(asked, given)
            lines = (told(case, gold, answer, row.name) for (case, gold), answer in zip(asked, given, strict=True))
            self._results.answers += lines
        return out

    def _passes(self) -> dict[str, Any]:
        tasks = [case for case in self._cases if self._has("pass@k", case)]
        count = self._settings.answers
        prompts = [(case, number) for case in tasks for number in range(count)]
        out: dict[str, Any] = {}
        limits = Limits(cpu_seconds=self._settings.code_seconds, seconds=3.0 * self._settings.code_seconds + 1)
        with Sandbox(limits) as sandbox:
            if free := sandbox.unconfined():
                self._note(f"programs are not wholly confined on this system: {'; '.join(free)}")
            for row, given in self._generated("pass@k", prompts, several=True):
                programs = [program_of(case, answer.text) for (case, _), answer in zip(prompts, given, strict=True)]
                outcomes = []
                for outcome in sandbox.run_all(programs):
                    outcomes.append(outcome)
                    self._progress("running programs", len(outcomes), len(programs))
                by_task = [outcomes[first : first + count] for first in range(0, len(outcomes), count)]
                out[row.name] = passes(tasks, by_task, self._settings.k)
                for (case, _), answer, program, outcome in zip(prompts, given, programs, outcomes, strict=True):
                    self._results.answers.append(
                        {
                            "metric": "pass@k",
                            "row": row.name,
                            "where": case.where,
                            "domain": case.domain,
                            "packs": list(answer.packs),
                            "answer": answer.text,
                            "code": program.code,
                            "right": outcome.passed,
                            "reason": outcome.reason,
                        }
                    )
        return out

    def _generated(
        self, name: str, prompts: Sequence[tuple[Case, int]], *, several: bool
    ) -> list[tuple[Selection, list[Answer]]]:
        """Have every row answer; prompts: cases with the number of the answer, which changes its seed."""
        out, read = [], 0

        def done(count: int) -> None:
            nonlocal read
            read += count
            self._progress(f"{name}: answering", read, len(self._rows) * len(prompts))

        for row in self._rows:
            asked = [
                Asked(case.asked, row.packs, self._settings.sampling(several=several, number=number))
                for case, number in prompts
            ]
            given = answers(self._model.host, asked, done)
            refused = [answer for answer in given if not answer.packs]
            if refused:
                self._note(f"{len(refused)} of {len(given)} questions were not answered: {refused[0].reason}")
            for note in dict.fromkeys(note for answer in given for note in answer.notes):
                self._note(note)
            out.append((row, given))
        return out

    def _note(self, text: str) -> None:
        if text not in self._results.notes:
            self._results.notes.append(text)
