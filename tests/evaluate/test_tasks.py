"""Code is found in answers, and joined with the tests that records bring."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.sandbox import Limits, Program, Sandbox
from modularbase_core.evaluate.tasks import checks_of, code_in, program_of
from modularbase_core.text.template import Message
from modularbase_core.train.readers.record import Record

HUMANEVAL = {
    "prompt": "from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n"
    '    """Add them.\n    >>> total([1, 2])\n    3\n    """\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}
MBPP = {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": "import math", "test_imports": ["import os"]}
QUOTED = "Write add.\nYour code should pass these tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0"
ADD = "def add(a, b):\n    return a + b\n"


def case(value, question=None):
    asked = (Message("user", question or value["prompt"]),)
    return Case("here", "python", False, Record(None, (), "", ""), asked, "", "", value)


def test_tests_of_every_form():
    assert checks_of(case(HUMANEVAL)) == HUMANEVAL["test"] + "\ncheck(total)\n"
    assert checks_of(case(MBPP, "Write add.")) == "import math\nimport os\nassert add(1, 2) == 3\n"
    assert checks_of(case({}, QUOTED)) == "assert add(1, 2) == 3\nassert add(0, 0) == 0\n"
    assert checks_of(case({"test": "assert add(1, 1) == 2"}, "x")) == "assert add(1, 1) == 2"
    for value in ({}, {"test_list": []}, {"test": ""}, {"test": None, "test_list": None}):
        assert checks_of(case(value, "assert that this is so, please")) == ""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ADD, ADD),
        (f"Here it is:\n\n```python\n{ADD}```\nIt adds.", ADD),
        (f"```\n{ADD}```", ADD),
        (f"```py\n{ADD}", ADD),
        (f"```bash\npip install x\n```\n```python\n{ADD}```", ADD),
        (f"```python\nprint(1)\n```\nor\n```python\n{ADD}```", ADD),
        (f"Sure.\n\n{ADD}\nThis adds two numbers.", ADD + "\n"),
        (f"{ADD}\n[INST] And now", ADD + "\n"),
        ("import math\nx = math.pi\nThat is pi.", "import math\nx = math.pi\n"),
        ("def add(a, b):\n    return (a +\n", "def add(a, b):\n    return (a +\n"),
        ("I cannot do that", "I cannot do that\n"),
        ("", "\n"),
    ],
)
def test_code_is_found_in_an_answer(text, code):
    assert code_in(text) == code


@given(st.text())
def test_any_answer_is_some_program(text):
    for value in (HUMANEVAL, {"prompt": QUOTED}):
        assert isinstance(program_of(case(value), text), Program)


@pytest.mark.parametrize(
    "answer",
    [
        "    return sum(numbers)\n",
        "    return sum(numbers)\n\nprint(total([1]))\nand so on",
        "return sum(numbers)",
        "result = 0\n    for n in numbers:\n        result += n\n    return result",
        "```python\n    return sum(numbers)\n```",
        "```python\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```",
        "def total(numbers: List[int]) -> int:\n    return sum(numbers)\n\nThat is all.",
    ],
)
def test_an_answer_may_go_on_where_the_prompt_ends_or_begin_anew(answer):
    with Sandbox(Limits(seconds=10.0)) as sandbox:
        done = sandbox.run(program_of(case(HUMANEVAL), answer))
    assert done.reason == ""


def test_an_answer_that_says_nothing_does_not_pass():
    with Sandbox(Limits(seconds=10.0)) as sandbox:
        for answer in ("", "I do not know.", "```python\n```"):
            for one in (case(HUMANEVAL), case({}, QUOTED)):
                assert not sandbox.run(program_of(one, answer)).passed


def test_what_takes_long_to_parse_is_cut_quickly():
    assert code_in("def f():\n" + "    x = (1,\n" * 5000).startswith("def f()")
