"""What a pack was before a run renewed it, kept beside the checkpoint; and what it says of itself afterwards.

A pack may be shipped into its own folder, so the run keeps the manifest, keys and examples that it began with.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from packaging.version import Version

from modularbase_core.errors import ConfigError
from modularbase_core.sdk.architecture import Architecture
from modularbase_core.sdk.manifest import EXAMPLES_FILE, MANIFEST_FILE, ROUTING_FILE, Manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.train.installed import Installed, checkpoint_of, find_pack, reading_base
from modularbase_core.train.recipe import Recipe

RENEWING: Final = ("align", "grow")
"""Stages that make a new version of a pack."""


def keep_origin(recipe: Recipe, runs: Path, installed: Installed) -> None:
    """Keep what the pack `start` says of itself, once; nothing where that is a run."""
    assert recipe.start is not None
    folder = _folder(recipe, runs)
    if checkpoint_of(runs, recipe.start).exists() or (folder / MANIFEST_FILE).exists():
        return
    pack = find_pack(recipe, "start", runs, installed).pack
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EXAMPLES_FILE, ROUTING_FILE, MANIFEST_FILE):  # the manifest last: it says that all are there
        if (source := pack.path(name)).is_file():
            shutil.copyfile(source, folder / name)


def origin_of(recipe: Recipe, runs: Path) -> Pack | None:
    """Return what `keep_origin` kept: a pack without weights."""
    folder = _folder(recipe, runs)
    return Pack(folder) if (folder / MANIFEST_FILE).exists() else None


def is_another(directory: Path, origin: Pack) -> bool:
    """Tell whether the pack in `directory` is another one than `origin`: one that began with its weights."""
    manifest = directory / MANIFEST_FILE
    return manifest.exists() and Manifest.read(manifest).id != origin.id


def renewed(recipe: Recipe, origin: Pack, architecture: Architecture, runs: Path, installed: Installed) -> Manifest:
    """Return the manifest of a pack's next version; an aligned one is for the version of the base that it met."""
    there = origin.manifest
    of_other_weights: dict[str, Any] = {"layers": None, "hidden_size": None, "architecture_key": None, "files": {}}
    made = replace(
        there, version=next_version(there.version), architecture=architecture, downloads={}, **of_other_weights
    )
    if recipe.stage != "align":
        return made
    base = _base(recipe, runs, installed)
    version = Version(base.version)
    return replace(made, base=base.id, base_compatibility=(f"{version.major}.{version.minor}",))


def next_version(version: str) -> str:
    """Return the next minor version: 1.0.3 gives 1.1.0."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor + 1}.0"


def _base(recipe: Recipe, runs: Path, installed: Installed) -> Manifest:
    assert recipe.base is not None
    if not checkpoint_of(runs, recipe.base).exists():
        return find_pack(recipe, "base", runs, installed).manifest
    if not recipe.over:
        raise ConfigError(
            f"recipe {recipe.name!r}: base {recipe.base!r} is a run, which has no version; give the folder of the "
            "shipped base and router as `over`, or the pack's [manifest]"
        )
    return reading_base(recipe, runs, installed).manifest


def _folder(recipe: Recipe, runs: Path) -> Path:
    return checkpoint_of(runs, recipe.name).with_name("origin")
