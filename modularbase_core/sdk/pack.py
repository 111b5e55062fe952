"""A pack: a directory of data that an installed distribution offers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modularbase_core.sdk.manifest import (
    EXAMPLES_FILE,
    MANIFEST_FILE,
    ROUTING_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
)


@dataclass(frozen=True)
class Pack:
    """What lies in `directory`; nothing is read before it is asked for.

    Two packs are equal when their directories are.
    """

    directory: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once; raises ManifestError."""
        return Manifest.read(self.directory / MANIFEST_FILE)

    @property
    def id(self) -> str:
        """The manifest's id."""
        return self.manifest.id

    @property
    def weights(self) -> Path:
        """Where the network's weights lie."""
        return self.directory / WEIGHTS_FILE

    @property
    def routing(self) -> Path:
        """Where the routing keys lie, if the pack brings any."""
        return self.directory / ROUTING_FILE

    @property
    def tokenizer(self) -> Path:
        """Where a base's tokenizer lies."""
        return self.directory / TOKENIZER_FILE

    @property
    def examples(self) -> Path:
        """Where example turns lie, if the pack brings any."""
        return self.directory / EXAMPLES_FILE
