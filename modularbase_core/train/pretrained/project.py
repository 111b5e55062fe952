"""The distribution that a checkpoint becomes: pyproject.toml, a package with one pack directory each, and papers."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from packaging.version import Version

from modularbase_core.errors import ConfigError
from modularbase_core.sdk.manifest import Manifest

PACKS: Final = ("base", "router", "general_chat")
DISTRIBUTION: Final = "modularbase"
VERSION: Final = "1.0.0"
_PAPERS: Final = ("LICENSE", "LICENSE.*", "LICENCE", "LICENCE.*", "NOTICE", "NOTICE.*")
_ID: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LICENCE: Final = re.compile(r"\A---\n(?:.*\n)*?license: *['\"]?([A-Za-z0-9.+-]+)['\"]? *\n")


@dataclass(frozen=True, slots=True)
class Names:
    """What the parts of a checkpoint are called, from one name such as `qwen2-5-0-5b-instruct`."""

    id: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or len(self.id) > 60:
            raise ConfigError(
                f"the name is {self.id!r}; use at most 60 lower-case letters and digits, joined by -, such as my-model"
            )

    @property
    def router(self) -> str:
        """The router's id."""
        return f"{self.id}-router"

    @property
    def chat(self) -> str:
        """General chat's id: not the plain `general_chat`, so that other sets may be installed beside it."""
        return f"{self.id}-chat"

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return f"{DISTRIBUTION}-{self.id}"

    @property
    def module(self) -> str:
        """What Python calls it."""
        return self.distribution.replace("-", "_")


def name_of(directory: Path) -> str:
    """Make a name of a checkpoint's folder."""
    words = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")
    return words[:60].rstrip("-") or "pretrained"


def licence_of(checkpoint: Path) -> str:
    """Return the licence that a checkpoint's model card names, empty where it names none."""
    card = checkpoint / "README.md"
    try:
        found = _LICENCE.match(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""


def write_project(folder: Path, names: Names, checkpoint: Path, manifests: dict[str, Manifest], *, form: str) -> None:
    """Write all of the distribution but its packs; `checkpoint`'s licence texts come along.

    form: of the weights; some are not as exact as the checkpoint's.
    """
    papers = [path for pattern in _PAPERS for path in sorted(checkpoint.glob(pattern)) if path.is_file()]
    for path in papers:
        shutil.copyfile(path, folder / path.name)
    here = Version(version(DISTRIBUTION))
    licence_files = ", ".join(f'"{path.name}"' for path in papers)
    (folder / "pyproject.toml").write_text(
        f"""[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{names.distribution}"
version = "{VERSION}"
description = "Base, router and general chat of ModularBase, taken from the checkpoint {names.id}."
readme = "README.md"
license-files = [{licence_files}]
requires-python = ">=3.10,<3.14"
dependencies = ["{DISTRIBUTION}>={here.major}.{here.minor},<{here.major}.{here.minor + 1}"]

[project.entry-points.{DISTRIBUTION}]
{names.id} = "{names.module}"

[tool.hatch.build.targets.wheel]
packages = ["{names.module}"]
""",
        encoding="utf-8",
    )
    (folder / names.module / "__init__.py").write_text(
        f'''"""Base, router and general chat, taken from the checkpoint {names.id}."""

from pathlib import Path

from modularbase_core.sdk import Pack, hookimpl


@hookimpl
def modularbase_packs() -> list[Pack]:
    """Offer the three packs that every turn needs."""
    return [Pack(Path(__file__).parent / name) for name in {PACKS!r}]
''',
        encoding="utf-8",
    )
    (folder / "README.md").write_text(_readme(names, manifests, form=form), encoding="utf-8")


def _readme(names: Names, manifests: dict[str, Manifest], *, form: str) -> str:
    rows = "\n".join(f"| `{one.id}` | {one.type} | {one.description} |" for one in manifests.values())
    licence = manifests["base"].licence
    told = f"The checkpoint's model card names the licence {licence}." if licence else "See the checkpoint's licence."
    rounding = f", but for the rounding of its weights to {form}" if form in ("int8", "int4") else ""
    return f"""# {names.distribution}

The checkpoint {names.id}, taken apart for ModularBase. Its logits are those of the checkpoint{rounding}.

    pip install -e .
    modularbase chat

Where other bases are installed too, put `base = "{names.id}"` into the settings.

| pack | type | what it is |
|---|---|---|
{rows}

The router is not trained yet: see docs/pretrained.md of ModularBase. {told}
"""
