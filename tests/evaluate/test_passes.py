"""pass@k is the unbiased estimate of Chen et al. (2021)."""

from itertools import combinations
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.evaluate.passes import pass_at_k, passes
from modularbase_core.evaluate.sandbox import Outcome


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_all_draws_of_k_that_hold_one_that_passed(drawn):
    samples, passed, k = drawn
    marks = [number < passed for number in range(samples)]
    draws = list(combinations(marks, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_known_values():
    assert pass_at_k(1, 1, 1) == 1
    assert pass_at_k(1, 0, 1) == 0
    assert pass_at_k(200, 0, 100) == 0
    assert pass_at_k(200, 200, 1) == 1
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 8) == 1


@given(st.integers(1, 300), st.data())
def test_it_grows_with_k_and_with_what_passed(samples, data):
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    here = pass_at_k(samples, passed, k)
    assert 0 <= here <= 1
    if k < samples:
        assert pass_at_k(samples, passed, k + 1) >= here - 1e-12
    if passed < samples:
        assert pass_at_k(samples, passed + 1, k) >= here - 1e-12


def test_tasks_are_counted_by_domain_with_why_programs_failed():
    tasks = [SimpleNamespace(domain=domain) for domain in ("python", "python", "sql")]
    passed, timeout, wrong = (
        Outcome(reason == "", reason, 0.0, "") for reason in ("", "timeout", "AssertionError: 1 != 2")
    )
    found = passes(tasks, [[passed, wrong], [wrong, timeout], [passed, passed]], (1, 2))
    assert found["domains"]["python"] == {
        **{"pass@1": 0.25, "pass@2": 0.5, "records": 2, "programs": 4, "passed": 1},
        "ended": {"AssertionError": 2, "passed": 1, "timeout": 1},
    }
    assert found["domains"]["sql"]["pass@1"] == 1
    assert found["all"]["pass@1"] == pytest.approx(0.5)
    assert passes([], [], (1,))["all"]["records"] == 0
