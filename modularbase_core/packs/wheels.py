"""A look into a wheel before it is installed: is it a plugin, which packs does it hold, are they sound?

Unpacks nothing but packs' data, into a folder of its own, and runs no code of the wheel.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from importlib_metadata import PathDistribution
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from modularbase_core.errors import ModularBaseError, PackError
from modularbase_core.packs.soundness import check_data
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import MANIFEST_FILE, Manifest
from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack

INDEX_LIMIT_BYTES: Final = 100_000_000
"""The largest file that package indexes take by default."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was looked into. packs: the manifests in it; requires: its dependencies, as its metadata has them.

    modules: the top-level names that it brings.
    """

    path: Path
    distribution: str
    version: str
    requires: tuple[str, ...]
    packs: tuple[Manifest, ...]
    modules: tuple[str, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    def offers(self, word: str) -> bool:
        """Whether a pack in it has this id or alias."""
        return any(word in (one.id, *one.aliases) for one in self.packs)


def look_into(path: Path, scratch: Path) -> Wheel:
    """Read a wheel and check its packs, unpacked under `scratch`.

    Raises PackError when it is no wheel or no plugin of ours, ManifestError and WeightsError when a pack is unsound;
    each sentence begins with the wheel's name.
    """
    with _opened(path) as archive:
        metadata = _metadata(path, archive)
        distribution, version = metadata.name, metadata.version
        if not any(entry.group == PROJECT for entry in metadata.entry_points):
            raise PackError(
                f"{path.name} is no pack: it has no entry point in the group {PROJECT!r}; "
                "install something else, or add one to its pyproject.toml"
            )
        manifests = [_checked(path, archive, folder, scratch) for folder in _folders(archive)]
        doubled = {one.id for one in manifests if [other.id for other in manifests].count(one.id) > 1}
        if doubled:
            raise PackError(f"{path.name} holds several packs with the id {min(doubled)!r}; tell its author")
        return Wheel(
            path=path,
            distribution=canonicalize_name(distribution),
            version=version,
            requires=tuple(metadata.requires or ()),
            packs=tuple(manifests),
            modules=tuple(sorted(_modules(archive))),
            sha256=file_sha256(path),
        )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise PackError(f"{path} does not exist; name a wheel that does") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise PackError(f"{path.name} is no whole wheel ({error}); download or build it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise PackError(f"{path.name} cannot be read and unpacked ({reason}); check it and the free space") from error


def _metadata(path: Path, archive: zipfile.ZipFile) -> PathDistribution:
    folders = {name.split("/")[0] for name in archive.namelist() if name.split("/")[0].endswith(".dist-info")}
    if len(folders) != 1:
        raise PackError(
            f"{path.name} is no wheel: it has {len(folders)} .dist-info folders; download or build it again"
        )
    found = PathDistribution(zipfile.Path(archive, f"{folders.pop()}/"))  # type: ignore[arg-type]  # zip paths suffice
    try:
        for text in found.requires or ():
            Requirement(text)
    except InvalidRequirement as error:
        raise PackError(f"{path.name} has a dependency that is none ({error}); tell its author") from error
    if not (found.metadata and found.metadata["Name"] and found.metadata["Version"]):
        raise PackError(f"{path.name} is no wheel: its metadata has no name and version; download or build it again")
    return found


def _folders(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name.removesuffix(MANIFEST_FILE) for name in archive.namelist() if name.endswith(f"/{MANIFEST_FILE}"))


def _modules(archive: zipfile.ZipFile) -> set[str]:
    tops = {name.split("/")[0].removesuffix(".py") for name in archive.namelist()}
    return {name for name in tops if name.isidentifier()}


def _checked(path: Path, archive: zipfile.ZipFile, folder: str, scratch: Path) -> Manifest:
    """Unpack one pack's folder and check it; return its manifest."""
    members = [one for one in archive.infolist() if one.filename.startswith(folder) and not one.is_dir()]
    for member in members:
        if ".." in PurePosixPath(member.filename).parts or member.filename.startswith("/"):
            raise PackError(f"{path.name} holds {member.filename!r}, which leads out of it; do not install it")
    archive.extractall(scratch, members)
    try:
        return check_data(Pack(scratch / folder))
    except ModularBaseError as error:
        # the scratch folder is nothing that the reader knows
        told = str(error).replace(f"{scratch}/", "")
        raise type(error)(f"{path.name}: {told}") from error
