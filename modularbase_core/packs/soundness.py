"""Whether a pack's data is what its manifest says: digests, shapes and finite values, wherever the files lie."""

from __future__ import annotations

import tempfile
from pathlib import Path

from modularbase_core.device.weights import read_tensors, read_weights
from modularbase_core.errors import ModularBaseError, WeightsError
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import MANIFEST_FILE, Manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.parameters import background_shapes, routing_shapes
from modularbase_core.sdk.testing import check_pack


def check_data(pack: Pack) -> Manifest:
    """Check every file of a pack that is here, downloaded ones included; return its manifest.

    What is yet to be downloaded is passed over. Raises ManifestError or WeightsError at the first fault.
    """
    manifest = pack.manifest
    absent = [name for name in manifest.downloads if not pack.path(name).is_file()]
    if absent:
        _check_digests(pack, manifest)
    elif all((pack.directory / name).is_file() for name in manifest.downloads):
        check_pack(pack.directory)
    else:
        _check_gathered(pack, manifest)
    if manifest.architecture is not None and pack.weights.is_file():
        read_weights(pack.weights, manifest.network)
    if pack.routing.is_file():
        read_tensors(pack.routing, background_shapes() if manifest.type == "router" else routing_shapes())
    return manifest


def _check_digests(pack: Pack, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        path = pack.path(name)
        if name not in manifest.downloads and not path.is_file():
            raise WeightsError(f"{path} is missing, but the manifest lists it; restore or delist it")
        if path.is_file() and (got := file_sha256(path)) != digest:
            raise WeightsError(
                f"{path} has SHA-256 {got[:12]}..., but the manifest says {digest[:12]}...; install the pack again"
            )


def _check_gathered(pack: Pack, manifest: Manifest) -> None:
    """Check a pack of which a part lies in the store as if all of it lay in one folder."""
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        for name in (MANIFEST_FILE, *manifest.files):
            link = Path(scratch, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(pack.path(name).absolute())
        try:
            check_pack(Path(scratch))
        except ModularBaseError as error:
            told = str(error).replace(f"{scratch}/", f"{pack.directory}/")
            raise type(error)(told) from error
