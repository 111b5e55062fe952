"""The rules of the house that no other tool checks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modularbase_core
from modularbase_core import errors

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("modularbase_core", "compiler", "plugins_example", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
PRODUCT = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("modularbase_core", "compiler")]


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_a_module_says_what_it_decides_in_six_lines_at_most(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring is not None
    assert len(docstring.splitlines()) <= 6 or path.name == "errors.py"


def test_no_file_is_a_grab_bag():
    forbidden = {"utils", "util", "common", "helpers", "misc", "other"}
    assert not [relative(path) for path in SOURCES if path.stem in forbidden]


def test_no_class_is_named_for_managing():
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not re.search(r"(Manager|Handler)$", node.name), f"{relative(path)}: {node.name}"


def test_the_error_tree_is_drawn_in_full():
    drawn = set(re.findall(r"\w+", errors.__doc__))
    leaves = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert leaves <= drawn


def test_what_is_exported_exists_and_nothing_else_is_public():
    exported = getattr(modularbase_core, "__all__", ())
    assert sorted(exported) == list(exported)
    for name in exported:
        assert hasattr(modularbase_core, name)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_torch_is_imported_only_where_networks_are_defined_trained_or_compiled():
    allowed = ("modularbase_core/graph/", "modularbase_core/train/", "compiler/")
    found = {relative(path) for path in PRODUCT if "torch" in imports(path)}
    assert not [path for path in found if not path.startswith(allowed)]


def test_tvm_is_imported_only_by_the_compiler_and_the_executable():
    found = {relative(path) for path in PRODUCT if {"tvm", "tvm_ffi"} & set(imports(path))}
    assert not [path for path in found if not path.startswith(("compiler/", "modularbase_core/device/executable.py"))]


def test_what_benches_draw_with_is_not_imported_by_the_product():
    assert not [relative(path) for path in PRODUCT if "matplotlib" in imports(path)]


def test_the_environment_is_read_only_by_the_command_line_and_set_only_by_device():
    found = {relative(path) for path in PRODUCT if re.search(r"os\.(environ|getenv)", path.read_text(encoding="utf-8"))}
    assert not [
        path
        for path in found
        if not path.startswith(("modularbase_core/cli/", "modularbase_core/device/", "compiler/"))
    ]


def test_the_road_to_chat_imports_no_torch():
    program = "import sys, modularbase_core.host, modularbase_core.cli.conversation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
