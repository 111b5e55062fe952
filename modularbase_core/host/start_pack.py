"""The data of a pack that is being written: weights to begin with, routing keys and digests.

What the pack is called and which base it is for stands in its manifest already; its examples are its author's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import write_weights
from modularbase_core.errors import ManifestError, PackError
from modularbase_core.host.keys import made_with
from modularbase_core.host.messages import Messages
from modularbase_core.host.parts import Progress
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.resolve import check_compatible, check_fetched, line_up
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.files import write_atomically
from modularbase_core.sdk.manifest import MANIFEST_FILE, ROUTING_FILE, WEIGHTS_FILE, Manifest, write_manifest
from modularbase_core.sdk.pack import Pack

_OF_OTHER_FILES: Final[dict[str, Any]] = {"layers": None, "hidden_size": None, "architecture_key": None, "files": {}}


def start_pack(directory: Path, catalog: Catalog, config: EngineConfig, progress: Progress | None = None) -> Manifest:
    """Complete the pack in `directory`, from its manifest.json and examples.json; return its manifest as written.

    Without weights it gets those of general chat of its installed base, and so answers as that does; its own are
    kept. Routing keys and the manifest's digests are made again. A failure or an interruption leaves the directory
    as it was. Raises ManifestError, PackError, WeightsError, and whatever compiling base and router raises.
    """
    pack = Pack(directory)
    described = pack.manifest
    prompts = [example.prompt for example in read_examples(pack.examples)]
    lineup = line_up(catalog, (described.base or config.base) if catalog.of_type("base") else None)
    begins = not pack.weights.is_file()
    if begins:
        check_fetched(lineup.general_chat)
        described = replace(described, architecture=lineup.general_chat.manifest.network, **_OF_OTHER_FILES)
    elif described.architecture is None:
        raise ManifestError(
            f"{pack.weights} is there, but {directory / MANIFEST_FILE} describes no network; remove the weights to "
            "begin with general chat's"
        )
    check_compatible(described, lineup.base.manifest)
    messages = Messages.open(replace(config, base=lineup.base.id), catalog, progress)
    keys, metadata = messages.routing_of(prompts), {"made_with": made_with(messages.lineup)}
    try:
        write_weights(pack.routing, keys, form="fp32", metadata=metadata)
        if begins:
            _copy(lineup.general_chat, pack.weights)
        return write_manifest(directory, described)
    except BaseException:
        if begins:
            for name in (ROUTING_FILE, WEIGHTS_FILE):
                (directory / name).unlink(missing_ok=True)
        raise


def _copy(source: InstalledPack, target: Path) -> None:
    def chunks() -> Iterator[bytes]:
        with source.pack.weights.open("rb") as file:
            while chunk := file.read(1 << 22):
                yield chunk

    try:
        write_atomically(target, chunks())
    except OSError as error:
        raise PackError(f"{target} cannot be written ({error.strerror}); free space or write elsewhere") from error
