import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.context.judge import CRITICAL, IMPORTANT, READ, Judge


def judge(importance: float = 0.5) -> Judge:
    return Judge(lambda token_ids: " ".join(map(str, token_ids)), lambda role, text, age: importance)


def pages(*first: int) -> np.ndarray:
    return np.array([range(one, one + 16) for one in first], np.int32)


def test_the_system_and_what_users_state_are_critical() -> None:
    assert judge(1.0).judge(pages(0), ["system"], typed=[False])[0].kind == CRITICAL
    assert judge(1.0).judge(pages(0), ["user"], typed=[True])[0].kind == CRITICAL
    assert judge(0.9).judge(pages(0), ["user"], typed=[True])[0].kind == IMPORTANT


def test_a_text_that_is_read_states_nothing_of_the_user() -> None:
    (judged,) = judge(1.0).judge(pages(0), ["user"], typed=[False])
    assert (judged.kind, judged.importance) == (IMPORTANT, READ)


@given(st.lists(st.integers(0, 499), min_size=1, max_size=6))
def test_only_what_was_said_before_is_redundant(places: list[int]) -> None:
    one = judge()
    text = np.random.default_rng(0).permutation(16 * 501).astype(np.int32).reshape(-1, 16)
    assert not any(one.seen(text))
    for place in places:
        # the first page follows others than it did, so its first words are new
        assert one.seen(text[[place, place + 1]])[1]
    assert not any(one.seen(text[::-1, ::-1]))


def test_pages_in_one_call_or_in_many_are_judged_alike() -> None:
    text = np.random.default_rng(1).integers(0, 8192, (40, 16)).astype(np.int32)
    text = np.concatenate([text, text])
    together, apart = judge(), judge()
    assert together.seen(text[:40]) + together.seen(text[40:]) == [apart.seen(page[None])[0] for page in text]
