"""Right answers are found in records, and recognised in what a model says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.evaluate.answers import Gold, gold_of, plain, stated_in
from modularbase_core.evaluate.options import cased_like, chosen_label, chosen_letter, labels, lettered, stated

AQUA = "A bag weighs 7 pounds and 4 ounces. How much in ounces?\nOptions:\nA) 108\nB) 112\nC)116\nD) 120\nE) 124"
FOLIO = "Read the premises and say whether the conclusion is True, False or Uncertain.\n\n- A hawk never lands."


@pytest.mark.parametrize(
    ("value", "question", "response", "gold"),
    [
        ({"final": "42"}, "How many?", "", Gold("number", "42")),
        ({"final": 42}, "How many?", "", Gold("number", "42")),
        ({"final": "1,000 km"}, "How far?", "", Gold("number", "1,000 km")),
        ({}, "How many?", "7 * 6 = 42\n#### 42", Gold("number", "42")),
        ({}, "How many?", "7 * 6 = 42\nThe answer is 42.", Gold("number", "42")),
        ({}, "多少？", "共四十二个。答案是42。", Gold("number", "42")),
        ({"final": "C"}, AQUA, "The answer is C.", Gold("letter", "C", tuple("ABCDE"))),
        ({"final": "(c)"}, AQUA, "", Gold("letter", "C", tuple("ABCDE"))),
        ({"final": "yes"}, "Could it?", "So the answer is yes.", Gold("label", "yes", ("yes", "no"))),
        ({}, "Could it?", "So the answer is no.", Gold("label", "no", ("yes", "no"))),
        ({"final": "True"}, FOLIO, "True.", Gold("label", "True", ("true", "false", "uncertain"))),
        ({"final": "Uncertain"}, "Is it?", "", Gold("label", "Uncertain", ("true", "false", "uncertain"))),
        ({"final": True}, "Is it?", "", Gold("label", "True", ("true", "false"))),
        ({"final": "Paris"}, "Capital of France?", "", Gold("text", "Paris")),
        ({"final": ""}, "How many?", "Nobody knows.", None),
        ({"final": None}, "How many?", "Nobody knows.", None),
        ({}, "Who wrote Hamlet?", "Shakespeare", None),
    ],
)
def test_a_record_has_its_right_answer(value, question, response, gold):
    assert gold_of(value, question, response) == gold


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("6 * 7 = 42\nThe answer is 42.", "42"),
        ("The answer is 42 apples in 3 bags.", "42"),
        ("The answer is 40 + 2 = 42", "42"),
        ("First 5, then 37, so 42", "42"),
        ("#### 42", "42"),
        ("so \\boxed{42} is what I say, as 41 is wrong", "42"),
        ("The answer is **42**.", "42"),
        ("The answer is 7.\nNo, wait. The answer is 42.", "42"),
        ("The answer is unclear, but 42", "42"),
        ("$42.00", "42"),
        ("no number", None),
        ("", None),
    ],
)
def test_a_number_is_found_in_an_answer(text, given):
    assert Gold("number", "42").given_in(text) == given
    assert Gold("number", "42.0").is_given_in(text) == (given is not None)
    assert not Gold("number", "43").is_given_in(text)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C.", "C"),
        ("the answer is (c)", "C"),
        ("Answer: **C**", "C"),
        ("答案是C", "C"),
        ("选C", "C"),
        ("C", "C"),
        ("C) 116", "C"),
        ("A bag weighs 116 ounces, so C", "C"),
        ("A bag weighs 116 ounces", None),
        ("It is 116.", None),
        ("Option A is wrong. The answer is C", "C"),
        ("the answer is unclear", None),
    ],
)
def test_a_letter_is_found_in_an_answer(text, letter):
    assert chosen_letter(text, tuple("ABCDE")) == letter
    assert Gold("letter", "C", tuple("ABCDE")).is_given_in(text) == (letter == "C")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("So the answer is yes.", "yes"),
        ("Yes, because no one said otherwise.", "yes"),
        ("No.", "no"),
        ("Nobody knows", None),
        ("It flies, so I would say no", "no"),
        ("The answer is: No", "no"),
    ],
)
def test_a_word_is_found_in_an_answer(text, label):
    assert chosen_label(text, ("yes", "no")) == label
    assert Gold("label", "Yes", ("yes", "no")).is_given_in(text) == (label == "yes")


def test_texts_are_compared_without_case_articles_and_punctuation():
    gold = Gold("text", "The Eiffel Tower")
    assert gold.is_given_in("eiffel tower.")
    assert gold.is_given_in("I think. The answer is the *Eiffel* Tower.")
    assert not gold.is_given_in("the tower")
    assert not gold.is_given_in("")
    assert plain("  An “Apple”，a pear ") == "apple pear"


@given(
    st.text(),
    st.sampled_from([Gold("number", "42"), Gold("letter", "A", ("A", "B")), Gold("label", "no", ("yes", "no"))]),
)
def test_any_text_gives_an_answer_or_none(text, gold):
    assert isinstance(gold.is_given_in(text), bool)
    assert stated_in(text) is None or stated_in(text)


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .,\n=", max_size=40))
def test_what_is_stated_is_given_whatever_stands_before(number, before):
    assert Gold("number", f"{number:,}").is_given_in(f"{before}\nThe answer is ${number}.00.")


def test_options_are_lettered_lines_without_a_gap():
    assert lettered(AQUA) == {"A": "108", "B": "112", "C": "116", "D": "120", "E": "124"}
    assert lettered("Which?\n(A) one\n (B) two words \nC. 3") == {"A": "one", "B": "two words", "C": "3"}
    assert lettered("A) one\nB) two\n\nAnd:\nA) three\nB) four") == {"A": "three", "B": "four"}
    assert lettered("A) alone") == {}
    assert lettered("B) one\nC) two") == {}
    assert lettered("A. one\nC. three") == {}
    assert lettered("哪一个？\nA、一\nB、二") == {"A": "一", "B": "二"}


def test_words_are_those_that_the_question_names():
    assert labels("No", "Is it?") == ("yes", "no")
    assert labels("no", "Answer yes, no or maybe.") == ("yes", "no", "maybe")
    assert labels("maybe", "Is it?") == ("yes", "no", "maybe")
    assert labels("False.", FOLIO) == ("true", "false", "uncertain")
    assert labels("Paris", "Where?") == ()


def test_an_option_can_be_put_where_the_answer_stands():
    assert stated("C", "3 * 4 = 12\nThe answer is C.") == ("The answer is ", ".")
    assert stated("yes", "It can.\nSo the answer is yes.") == ("So the answer is ", ".")
    assert stated("True", "True.") == ("", ".")
    assert stated("C", "Cats") == ("The answer is ", ".")
    assert stated("C", "") == ("The answer is ", ".")
    assert [cased_like("false", word) for word in ("True", "true", "TRUE")] == ["False", "false", "FALSE"]
