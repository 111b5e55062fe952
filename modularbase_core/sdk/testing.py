"""What a pack author runs before publishing: is this directory a pack that will load?"""

from __future__ import annotations

import json
from pathlib import Path

from modularbase_core.errors import ManifestError, WeightsError
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import DATA_FILES, Manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.parameters import background_shapes, parameter_shapes, routing_shapes
from modularbase_core.sdk.tensorfile import check_shapes, read_header


def check_pack(directory: Path) -> Manifest:
    """Check manifest, files, digests and tensor shapes of the pack in `directory`; return its manifest.

    Reads neither torch nor numpy. Raises ManifestError or WeightsError at the first fault, in one sentence.
    """
    pack = Pack(directory)
    manifest = pack.manifest
    _check_files(directory, manifest)
    check_shapes(pack.weights, read_header(pack.weights), parameter_shapes(manifest.network))
    if pack.routing.exists():
        wanted = background_shapes() if manifest.type == "router" else routing_shapes()
        check_shapes(pack.routing, read_header(pack.routing), wanted)
    if manifest.type == "base" and not pack.tokenizer.is_file():
        raise ManifestError(f"{pack.tokenizer} is missing; a base brings its tokenizer")
    if pack.examples.exists():
        _check_examples(pack.examples)
    return manifest


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name in DATA_FILES:
        if (directory / name).exists() and name not in manifest.files:
            raise ManifestError(f"{directory / name} is not listed under files; write the manifest again")
    for name, digest in manifest.files.items():
        if not (directory / name).is_file():
            raise ManifestError(f"{directory / name} is missing, but the manifest lists it; restore or delist it")
        if (got := file_sha256(directory / name)) != digest:
            raise WeightsError(
                f"{directory / name} has SHA-256 {got[:12]}..., but the manifest says {digest[:12]}...; "
                "install the pack again, or write its manifest again if you changed it"
            )


def _check_examples(path: Path) -> None:
    try:
        examples = json.loads(path.read_bytes())
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON ({error}); correct it") from error
    if not isinstance(examples, list):
        raise ManifestError(f"{path} holds {type(examples).__name__}; expected a list of examples")
