"""docs/hooks.md: every hook has a section, every example runs as a plugin, and what is claimed of it holds."""

import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from tiny_packs import PACK, manifest, write_pack

from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.plugins import Plugins, plugin_manager
from modularbase_core.sdk import hookspecs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {title: text for title, text in SECTIONS.items() if title.startswith("modularbase_")}
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("modularbase_")}


def test_every_hook_has_its_section_with_its_arguments():
    told = dict(re.findall(r"(modularbase_\w+)\(([\w, ]*)\)", " ".join(EXAMPLES)))
    assert told == {name: ", ".join(inspect.signature(hook).parameters) for name, hook in HOOKS.items()}


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_a_plugin_that_does_what_is_claimed(title, tmp_path):
    example, claim = re.findall(r"```python\n(.*?)```", EXAMPLES[title], re.DOTALL)
    write_pack(tmp_path / "my_domain", manifest("my_domain", "domain", PACK))
    plugin = ModuleType("my_plugin")
    plugin.__file__ = str(tmp_path / "__init__.py")
    exec(compile(example, f"{title}, the example", "exec"), vars(plugin))
    for name in re.findall(r"modularbase_\w+", title):
        assert name in vars(plugin)

    manager = plugin_manager()
    manager.register(plugin, "my_plugin")
    hooks = Hooks(manager)
    assert "assert " in claim
    exec(compile(claim, f"{title}, the claim", "exec"), {**vars(plugin), "manager": manager, "hooks": hooks})
    assert hooks.take_faults() == []

    plugins = Plugins(manager)
    plugins.load([])
    assert [(one.name, one.faults) for one in plugins.loaded] == [("my_plugin", ())]


def test_no_python_stands_outside_the_sections_that_are_run():
    assert PAGE.count("```python") == 2 * len(EXAMPLES)


def test_what_the_page_names_exists():
    for name in re.findall(r"`(modularbase_core\.[\w.]+)", PAGE):
        pkgutil.resolve_name(name)
    for path in re.findall(r"`(plugins_example/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists()
