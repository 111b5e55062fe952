import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.host.history import shorten
from modularbase_core.text.template import Message

WORDS = st.text("ab", min_size=1, max_size=6)


def letters(messages):
    return sum(len(message.content) for message in messages)


def conversation(*texts, system=None):
    roles = ("user", "assistant")
    opening = [] if system is None else [Message("system", system)]
    return [*opening, *(Message(roles[index % 2], text) for index, text in enumerate(texts))]


def said(messages):
    return [message.content for message in messages]


def test_of_equally_important_turns_the_oldest_goes():
    messages = conversation("q1", "a1", "q2", "a2", "q3", "a3", "q4", system="s")
    kept = shorten(messages, letters, 8, lambda role, text, age: 0.5)
    assert said(kept) == ["s", "q3", "a3", "q4"]


def test_an_important_message_keeps_its_turn():
    messages = conversation("q1", "a1", "q2", "a2", "q3", "a3", "q4")
    for kept_text in ("q1", "a1"):
        kept = shorten(messages, letters, 6, lambda role, text, age, kept=kept_text: float(text == kept))
        assert said(kept) == ["q1", "a1", "q4"]


def test_importance_is_asked_with_role_text_and_age():
    asked = []
    messages = conversation("q1", "a1", "q2", "a2", "q3", system="s")
    shorten(messages, letters, 2, lambda *one: asked.append(one) or 0.0)
    assert asked == [("user", "q1", 2), ("assistant", "a1", 2), ("user", "q2", 1), ("assistant", "a2", 1)]


def test_what_fits_is_left_alone_and_nobody_is_asked():
    messages = conversation("q1", "a1", "q2")
    assert shorten(messages, letters, 6, pytest.fail) == messages


def test_a_question_too_long_by_itself_stays_with_the_system_message():
    messages = conversation("q1", "a1", "a long question", system="s")
    assert said(shorten(messages, letters, 3, lambda *_: 1.0)) == ["s", "a long question"]


@given(
    texts=st.lists(WORDS, min_size=1, max_size=13).filter(lambda texts: len(texts) % 2),
    system=st.none() | WORDS,
    limit=st.integers(0, 60),
    worth=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=13, max_size=13),
)
def test_no_turn_goes_that_is_worth_more_than_one_that_stays_or_need_not_go(texts, system, limit, worth):
    messages = conversation(*texts, system=system)
    first = 0 if system is None else 1
    turns = [tuple(messages[index : index + 2]) for index in range(first, len(messages) - 1, 2)]
    value = {age: worth[age] for age in range(1, 8)}
    kept = shorten(messages, letters, limit, lambda role, text, age: value[age])
    assert [*kept[:first], kept[-1]] == [*messages[:first], messages[-1]]
    middle = kept[first:-1]
    staying = [tuple(middle[index : index + 2]) for index in range(0, len(middle), 2)]
    ages = {id(turn[0]): len(turns) - index for index, turn in enumerate(turns)}
    stay = [ages[id(turn[0])] for turn in staying]
    gone = [age for age in ages.values() if age not in stay]
    assert stay == sorted(stay, reverse=True)
    assert letters(kept) <= limit or not stay
    if gone:
        last = min(gone, key=lambda age: (-value[age], age))  # the most valuable, the youngest of these
        assert all((value[age], -age) > (value[last], -last) for age in stay)
        assert letters(kept) + letters(turns[len(turns) - last]) > limit
