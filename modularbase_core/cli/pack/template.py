"""The pack template: where it lies, which answers it takes, and rendering it through cookiecutter.

The rules of names are the template's own, read from its hook; so plain cookiecutter refuses the same answers.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ModularBaseError

FOLDER: Final = "cookiecutter-pack"
"""Its name, in the wheel inside the package and in a checkout beside it."""

# Any: texts, and numbers among the private ones
Answers = dict[str, Any]


class Template:
    """The template as it lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def find(cls) -> Template:
        """Find the template that came with this package."""
        package = Path(str(files("modularbase_core")))
        for folder in (package / FOLDER, package.parent / FOLDER):
            if (folder / "cookiecutter.json").is_file():
                return cls(folder)
        raise ModularBaseError(f"the pack template is not in {package}; install modularbase again")

    @property
    def licences(self) -> list[str]:
        """The licences that can be chosen, the default first."""
        told = json.loads((self.folder / "cookiecutter.json").read_text(encoding="utf-8"))
        return list(told["licence"])

    def problem(self, answers: Mapping[str, Any]) -> str:
        """Say in one sentence what is wrong with answers; empty where nothing is."""
        rules = runpy.run_path(str(self.folder / "hooks" / "pre_gen_project.py"))
        told: str = rules["problem"](answers)
        return told

    def answers(self, given: Mapping[str, Any]) -> Answers:
        """Return all answers: those given, the others derived from them. Raises ModularBaseError."""
        try:
            from cookiecutter.generate import generate_context
            from cookiecutter.prompt import prompt_for_config
        except ImportError as error:
            raise ModularBaseError(
                f"the template needs cookiecutter ({error}); run `pip install 'modularbase[author]'`"
            ) from error
        context = generate_context(str(self.folder / "cookiecutter.json"), extra_context=dict(given))
        return dict(prompt_for_config(context, no_input=True))

    def render(self, answers: Answers, output: Path) -> Path:
        """Render the project into the folder `output`, which no project of that name is in; return its folder."""
        from cookiecutter.generate import generate_files

        # not the hooks: the answers have been checked, and the data is made by whoever renders
        project = Path(
            generate_files(
                str(self.folder), {"cookiecutter": answers}, output_dir=str(output.resolve()), accept_hooks=False
            )
        )
        for compiled in project.rglob("__pycache__"):  # pip compiles what it installs, the template too
            shutil.rmtree(compiled)
        return project
