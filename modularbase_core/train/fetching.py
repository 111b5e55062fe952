"""Bring public sources into a folder: each in one of its own, with a note on what it is and under which licence.

Decides where files lie and what of an archive is unpacked. How the bytes come is `packs.transfer`'s.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path
from typing import IO, Final

from modularbase_core.errors import DataError, FetchError
from modularbase_core.packs.transfer import TIMEOUT_SECONDS, Download, Progress, Transfer, Wording, claim
from modularbase_core.train.sources import PublicSource

NOTE_FILE: Final = "SOURCE"
"""Without a suffix, so that nothing takes it for a text to learn from."""
ARCHIVES: Final = (".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")
_WORDING: Final = Wording(
    listed="the catalogue",
    wrong="look at the source's page for what changed",
    hopeless="look at the source's page for where it is now",
    room="free space there or name another folder with --to",
    error=DataError,
)


def fetch_source(
    source: PublicSource,
    folder: Path,
    progress: Progress | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[Path]:
    """Fetch a source's files into `folder`/NAME and return where they lie.

    A file is there whole or not at all; what has come of a broken download goes on where it ended, if the server can
    say that it still has the same. Raises FetchError, also when all is there already, and DataError when the bytes
    are not those of the catalogue.
    """
    place = folder / source.name
    targets = [place / name for name in source.file_names()]
    there = [target for target in targets if target.exists()]
    if len(there) == len(targets):
        raise FetchError(f"{source.name} is in {place} already; remove it to fetch it again")
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / NOTE_FILE).write_text(_note(source), encoding="utf-8")
        for number, target in enumerate(targets):
            if target not in there:
                download = Download(
                    name=f"{source.name}/{target.name}", url=source.urls[number], sha256=source.digest_of(number)
                )
                _fetch(download, target, progress, pause, timeout_seconds)
    except OSError as error:
        raise FetchError(
            f"{source.name} cannot be kept in {place} ({error.strerror or error}); {_WORDING.room}"
        ) from error
    return targets


def unpack(archive: Path, tell: Callable[[str], None]) -> Path | None:
    """Unpack an archive beside itself and return the folder; None for a file that is no archive.

    Only plain files are taken, and only where they lie within the folder; `tell` is told how many others there were.
    The folder is there whole or not at all. Raises DataError when it is there already or the archive is damaged.
    """
    suffix = next((one for one in ARCHIVES if archive.name.endswith(one)), None)
    if suffix is None:
        return None
    folder = archive.with_name(archive.name.removesuffix(suffix))
    if folder.exists():
        raise DataError(f"{folder} is there already; remove it to unpack {archive.name} again")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=archive.parent) as work:
        inside, left_out = Path(work, "files"), 0
        inside.mkdir()
        try:
            for name, opened in _zip_files(archive) if suffix == ".zip" else _tar_files(archive):
                target = inside / name
                if opened is None or not target.resolve().is_relative_to(inside.resolve()):
                    left_out += 1
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened as file, target.open("xb") as out:
                    shutil.copyfileobj(file, out, 1 << 20)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError) as error:
            raise DataError(f"{archive} is damaged ({error}); remove it and fetch it again") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{archive} cannot be unpacked ({error}); unpack it by other means") from error
        if left_out:
            tell(f"{archive.name}: {left_out} links or files outside of the folder were left out")
        inside.replace(folder)
    return folder


def _fetch(
    download: Download,
    target: Path,
    progress: Progress | None,
    pause: Callable[[float], None],
    timeout_seconds: float,
) -> None:
    part = target.with_name(f".{target.name}.part")
    with claim(part, download.name, progress) as file:
        if not target.exists():  # else another process fetched it meanwhile
            validator = target.with_name(f".{target.name}.validator")
            Transfer(
                download,
                file,
                validator,
                _WORDING,
                progress,
                files=True,
                pause=pause,
                timeout_seconds=timeout_seconds,
            ).run()
            part.replace(target)


def _note(source: PublicSource) -> str:
    lines = [f"{source.name}: {source.what}", f"licence: {source.licence}", f"home: {source.home or 'not told'}"]
    lines += [f"from: {url}" for url in source.urls]
    lines += [f"texts: {source.files}"] if source.files else []
    return "\n".join(lines) + "\n"


def _tar_files(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield names and open files, None for what is neither a file nor a folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isreg():
                yield member.name, tar.extractfile(member)
            elif not member.isdir() and member.type not in (tarfile.XGLTYPE, tarfile.XHDTYPE):
                yield member.name, None


def _zip_files(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename, None
            elif not info.is_dir():
                yield info.filename, zipped.open(info)
