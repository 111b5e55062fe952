"""Reading a pack runs nothing: no file format that can hold code is read, and no text is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFINED = ROOT / "modularbase_core/evaluate/confined.py"  # runs what a model wrote, in a process that it confines
SOURCES = sorted(
    path
    for folder in ("modularbase_core", "compiler", "plugins_example")
    for path in (ROOT / folder).rglob("*.py")
    if path != CONFINED
)
RUNNING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pickletools"}
RUNNING_NAMES = {"eval", "exec", "compile", "__import__"}


def offences(source):
    """Yield what in a source could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] in RUNNING_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNNING_MODULES:
            yield node.module
        elif isinstance(node, ast.Attribute) and node.attr in RUNNING_MODULES | {"allow_pickle"}:
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(node):
    name = ast.unparse(node.func)
    given = {one.arg: one.value for one in node.keywords}
    if name in RUNNING_NAMES:
        yield name
    if name.endswith("torch.load") and not _is_true(given.get("weights_only")):
        yield "torch.load without weights_only"
    if name.split(".")[-1] in ("load", "full_load", "unsafe_load") and name.split(".")[0] == "yaml":
        yield "yaml.load"
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        yield "allow_pickle"


def _is_true(node):
    return _is(node, True)


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_reads_what_could_run(path):
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import yaml; yaml.load('x')",
        "eval('1')",
        "exec('1')",
        "import marshal",
    ],
)
def test_such_a_source_would_be_found(source):
    assert list(offences(source))


@pytest.mark.parametrize("source", ["torch.load('x', weights_only=True)", "model.eval()", "np.load('x')"])
def test_harmless_sources_are_not(source):
    assert list(offences(source)) == []
