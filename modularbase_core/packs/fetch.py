"""Weights that a manifest names by address: fetched once into a store that is keyed by digest.

Decides when bytes are trusted: their SHA-256 is the one in the manifest. How they come is `transfer`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from modularbase_core.errors import FetchError, WeightsError
from modularbase_core.packs.transfer import (
    ATTEMPTS,
    SCHEMES,
    TIMEOUT_SECONDS,
    Download,
    Progress,
    Transfer,
    Wording,
    claim,
)
from modularbase_core.sdk.pack import Pack

__all__ = ["ATTEMPTS", "Download", "Progress", "fetch", "missing"]

_WORDING: Final = Wording(
    listed="the manifest",
    wrong="tell the pack's author",
    hopeless="upgrade the pack or tell its author",
    room="free space there or name another folder with --cache",
    error=WeightsError,
)


def missing(pack: Pack) -> list[Download]:
    """Return what of a pack is yet to be fetched; raises ManifestError."""
    manifest = pack.manifest
    absent = [name for name in manifest.downloads if not pack.path(name).is_file()]
    present = sum(pack.path(name).stat().st_size for name in manifest.files if pack.path(name).is_file())
    # size_mb is rounded to kilobytes; one that leaves nothing for the absent files does not count them
    left = round(manifest.size_mb * 1e6) + 1000 - present
    return [
        Download(
            name=f"{manifest.id}/{name}",
            url=manifest.downloads[name],
            sha256=manifest.files[name],
            limit_bytes=left if left > 1000 else None,
        )
        for name in absent
    ]


def fetch(
    download: Download,
    store: Path,
    progress: Progress | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Path:
    """Return `store`/<sha256>, fetched if it is not there yet.

    What has come of a broken download is kept as <sha256>.part and goes on where it ended; of several processes one
    fetches and the others wait. Raises FetchError, and WeightsError when the bytes are not those of the manifest.
    """
    if urlsplit(download.url).scheme not in SCHEMES:
        raise FetchError(f"{download.name} names {download.url!r}; only http and https addresses are fetched")
    path = store / download.sha256
    try:
        if path.is_file():
            return path
        store.mkdir(parents=True, exist_ok=True)
        with claim(store / f"{download.sha256}.part", download.name, progress) as part:
            if not path.is_file():  # else another process fetched it meanwhile
                Transfer(
                    download,
                    part,
                    store / f"{download.sha256}.validator",
                    _WORDING,
                    progress,
                    pause=pause,
                    timeout_seconds=timeout_seconds,
                ).run()
                (store / f"{download.sha256}.part").replace(path)
    except OSError as error:
        raise FetchError(
            f"{download.name} cannot be kept in {store} ({error.strerror or error}); {_WORDING.room}"
        ) from error
    return path
