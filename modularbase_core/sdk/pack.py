"""A pack: a directory of data that an installed distribution offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from modularbase_core.sdk.manifest import (
    EXAMPLES_FILE,
    MANIFEST_FILE,
    ROUTING_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
)

GRAPHS_FOLDER: Final = "graphs"
"""Of a pack's directory: what spares torch to those who compile it, see `device.graphs`; no manifest lists it."""
GRAPH_SUFFIX: Final = ".json.xz"


@dataclass(frozen=True)
class Pack:
    """What lies in `directory`; nothing is read before it is asked for.

    store: where downloaded files lie, each under its SHA-256. Two packs are equal when their directories are.
    """

    directory: Path
    store: Path | None = field(default=None, compare=False)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once; raises ManifestError."""
        return Manifest.read(self.directory / MANIFEST_FILE)

    @property
    def id(self) -> str:
        """The manifest's id."""
        return self.manifest.id

    def path(self, name: str) -> Path:
        """Return where the file `name` lies: in the directory, or else in the store if the manifest lists it.

        Raises ManifestError when it has to read the manifest and cannot.
        """
        here = self.directory / name
        if self.store is None or here.exists() or name not in self.manifest.files:
            return here
        return self.store / self.manifest.files[name]

    @property
    def weights(self) -> Path:
        """Where the network's weights lie."""
        return self.path(WEIGHTS_FILE)

    @property
    def routing(self) -> Path:
        """Where the routing keys lie, if the pack brings any."""
        return self.path(ROUTING_FILE)

    @property
    def tokenizer(self) -> Path:
        """Where a base's tokenizer lies."""
        return self.path(TOKENIZER_FILE)

    @property
    def template(self) -> Path:
        """Where a base's chat template lies, if it brings one."""
        return self.path(TEMPLATE_FILE)

    @property
    def examples(self) -> Path:
        """Where example turns lie, if the pack brings any."""
        return self.path(EXAMPLES_FILE)

    @property
    def graphs(self) -> Path:
        """Where portable graphs of its network lie, if it brings any."""
        return self.directory / GRAPHS_FOLDER
