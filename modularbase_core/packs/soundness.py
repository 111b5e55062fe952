"""Whether a pack's data is what its manifest says, as far as it is here: weights may be yet to come."""

from __future__ import annotations

from modularbase_core.errors import ManifestError, WeightsError
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.testing import check_pack


def check_data(pack: Pack) -> Manifest:
    """Check a pack as `check_pack` does or, where files are yet to be downloaded, the digests of the others.

    Returns its manifest. Raises ManifestError or WeightsError at the first fault.
    """
    manifest = pack.manifest
    if all(pack.path(name).is_file() for name in manifest.downloads):
        return check_pack(pack.directory, store=pack.store)
    for name, digest in manifest.files.items():
        path = pack.path(name)
        if path.is_file() and (got := file_sha256(path)) != digest:
            raise WeightsError(
                f"{path} has SHA-256 {got[:12]}..., but the manifest says {digest[:12]}...; install the pack again"
            )
        if not path.is_file() and name not in manifest.downloads:
            raise ManifestError(f"{path} is missing, but the manifest lists it; restore or delist it")
    return manifest
