"""Programs from answers: the code in what a model said, and the tests that a record brings for it.

HumanEval brings a function `check`, MBPP a list of asserts; other prompts quote their asserts themselves.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any, Final

from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.sandbox import Program

_FENCE: Final = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_BEGINS: Final = re.compile(r"^(?:def |async def |class |import |from \w|@|[A-Za-z_]\w*\s*=[^=])", re.MULTILINE)
_LONGEST_LINES: Final = 600


def checks_of(case: Case) -> str:
    """Return what tests a case as a program to run after the answer's; empty where it has none."""
    value, setup = case.value, _lines(case.value.get("test_setup_code")) + _lines(case.value.get("test_imports"))
    if isinstance(test := value.get("test"), str) and test.strip():
        entry = value.get("entry_point")
        return f"{test}\ncheck({entry})\n" if isinstance(entry, str) and "def check" in test else test
    if isinstance(listed := value.get("test_list"), list) and listed:
        return "\n".join([*setup, *map(str, listed)]) + "\n"
    return "".join(f"{line}\n" for line in case.question.splitlines() if _is_assert(line))


def program_of(case: Case, text: str) -> Program:
    """Return the program of an answer with the case's tests.

    Where the prompt is code, as HumanEval's are, it comes before: for its imports, and for an answer that goes on where
    it ends.
    """
    code, entry, prompt = code_in(text), case.value.get("entry_point"), case.question.rstrip() + "\n"
    if isinstance(entry, str) and entry and _broken_line(prompt) is None:
        if not re.search(rf"\bdef {re.escape(entry)}\b", code):
            code = _longest_that_parses(_indented(_fenced(text) or text), prompt)
        code = f"{prompt}\n{code}"
    return Program(code, checks_of(case))


def code_in(text: str) -> str:
    """Return the Python code of an answer.

    The first fenced block that defines something, or else the first; without one, from the first line that begins code
    as much as parses.
    """
    if block := _fenced(text):
        return block
    begins = _BEGINS.search(text)
    return text.strip() + "\n" if begins is None else _longest_that_parses(text[begins.start() :])


def _fenced(text: str) -> str:
    blocks = [block for language, block in _FENCE.findall(text) if language.lower() in ("", "python", "py", "python3")]
    defining = [block for block in blocks if re.search(r"^\s*(?:def|class) ", block, re.MULTILINE)]
    return str((defining or blocks or [""])[0])


def _indented(text: str) -> str:
    """Return what follows a function's head, its first line indented as the others are, by four where none is."""
    lines = text.strip("\n").splitlines() or [""]
    if lines[0][:1].strip():
        rest = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
        if rest and rest[0]:
            lines[0] = " " * rest[0] + lines[0]
        else:
            lines = [f"    {line}" for line in lines]
    return "\n".join(lines) + "\n"


def _longest_that_parses(text: str, before: str = "") -> str:
    """Return the first lines of `text` that parse after `before`, cut where the parser stops; all where none do."""
    lines = text.splitlines(keepends=True)[:_LONGEST_LINES]
    above, count = before.count("\n"), len(lines)
    while count > 0:
        broken = _broken_line(before + "".join(lines[:count]))
        if broken is None:
            return "".join(lines[:count])
        count = min(count - 1, broken - above - 1) if broken > above else count - 1
    return "".join(lines)


def _broken_line(code: str) -> int | None:
    """Return the line at which code stops being Python, counted from 1; 0 where that is not known, None for nowhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes
        try:
            ast.parse(code)
        except SyntaxError as error:
            return error.lineno or 0
        except (ValueError, RecursionError, MemoryError):
            return 0
    return None


def _is_assert(line: str) -> bool:
    return line.startswith("assert ") and _broken_line(line) is None


# value: whatever JSON held
def _lines(value: Any) -> list[str]:
    if isinstance(value, str) and value.strip():
        return [value]
    return [str(one) for one in value] if isinstance(value, list) else []
