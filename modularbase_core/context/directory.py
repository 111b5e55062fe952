"""The directory of one conversation: whether it is one, who may use it, and whether it is whole.

LMDB follows the numbers in its file without checking them: a flipped bit there can end the process (of 1,500 flips 8
failed an assertion of mdb.c). Its offline verifier reads the file first, without mapping it: 0.08 s for 100,000
tokens, 0.6 s for a million. What lies inside the pages of a sound tree is left to the checksums of `record`.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb
from lmdb import verify

from modularbase_core.context.record import FORMAT, seal, unseal
from modularbase_core.errors import SessionError, SessionInUse

LOCK_FILE: Final = "lock"
DATA_FILE: Final = "data.mdb"
OURS: Final = {LOCK_FILE, DATA_FILE, "lock.mdb"}
FORMAT_KEY: Final = b"\0format"


@dataclass(frozen=True, slots=True)
class Databases:
    """An open environment and what is in it: rows and payloads by page key, values by name."""

    env: lmdb.Environment
    index: Any  # lmdb keeps the type of its handles to itself
    payloads: Any
    meta: Any


def claim(directory: Path, *, create: bool) -> int:
    """Make the directory if `create`, take it for this process and return the open file that holds the claim.

    The claim ends when the file is closed, so with the process at the latest, however it ends.
    Raises SessionInUse, or SessionError if the directory is missing, holds something else or cannot be written.
    """
    try:
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not directory.is_dir():
            raise SessionError(f"there is no session {directory.name!r} in {directory.parent}; check its name")
        found = {path.name for path in directory.iterdir()}
        if DATA_FILE not in found and (not create or not found <= OURS):
            raise SessionError(f"{directory} is a directory but no session; use another name")
        file = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(directory, error.strerror) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        raise _in_use(directory, file) from None
    except OSError as error:
        os.close(file)
        raise unusable(directory, error.strerror) from error
    return file


def _in_use(directory: Path, file: int) -> SessionInUse:
    holder = os.pread(file, 32, 0).strip()
    os.close(file)
    # a moment after it is taken the file is still empty
    return SessionInUse(directory.name, int(holder) if holder.isdigit() else None)


def open_databases(directory: Path, limit_bytes: int) -> Databases:
    """Open the store of a claimed directory, or make an empty one.

    Raises SessionError if it is damaged as a whole, no store, of another release or cannot be written.
    """
    _check_tree(directory)
    try:
        # metasync=False: one wait for the disk a commit instead of two. A failure of the machine may undo the last
        # commit, never tear one. readahead=False: a page is 6 blocks (nano, int8), its neighbours are not wanted.
        env = lmdb.open(
            str(directory), map_size=limit_bytes, max_dbs=3, metasync=False, readahead=False, mode=0o600, subdir=True
        )
        try:
            return _open_or_make(directory, env)
        except BaseException:
            env.close()
            raise
    except lmdb.Error as error:
        raise failure(directory, error) from error


def _open_or_make(directory: Path, env: lmdb.Environment) -> Databases:
    fresh = env.stat()["entries"] == 0  # killed before the first commit too
    with env.begin(write=True) as txn:  # handles opened in a reading transaction end with it
        try:
            index, payloads, meta = (env.open_db(name, txn=txn, create=fresh) for name in (b"index", b"pages", b"meta"))
        except (lmdb.NotFoundError, lmdb.IncompatibleError):
            raise SessionError(f"{directory} holds another program's data, no session; use another name") from None
        if fresh:
            txn.put(FORMAT_KEY, seal(FORMAT_KEY, FORMAT), db=meta)
        found = unseal(FORMAT_KEY, txn.get(FORMAT_KEY, b"", db=meta))
    # the verifier takes any flags that go together; ours have none
    if found is None or any(flag for db in (index, payloads, meta) for flag in db.flags().values()):
        raise damaged(directory, "what format it has cannot be read")
    if found != FORMAT:
        raise SessionError(
            f"session {directory.name!r} is written in format {found.decode(errors='replace')} but this release reads "
            f"{FORMAT.decode()}; open it with the release that wrote it"
        )
    return Databases(env, index, payloads, meta)


def _check_tree(directory: Path) -> None:
    path = directory / DATA_FILE
    try:
        if not path.exists() or path.stat().st_size == 0:  # killed before the first page was written
            return
        problems: list[str] = verify.verify(str(path))  # type: ignore[no-untyped-call]  # lmdb types all but this
    except verify.VerifyError as error:
        problems = [str(error)]
    except OSError as error:
        raise unusable(directory, error.strerror) from error
    if problems:
        raise damaged(directory, problems[0])


def failure(directory: Path, error: lmdb.Error) -> SessionError:
    """Return what to tell of an error of LMDB: that the store is damaged, or that it cannot be written."""
    if isinstance(error, DAMAGE):
        return damaged(directory, str(error))
    return unusable(directory, str(error))


DAMAGE: Final = (
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""What LMDB raises where the file is not what it wrote."""


def damaged(directory: Path, problem: str) -> SessionError:
    """Return the error for a store that cannot be read at all."""
    return SessionError(
        f"session {directory.name!r} is damaged on disk ({problem}); "
        f"bring {directory} back from a copy, or delete it and begin anew"
    )


def unusable(directory: Path, reason: str | None) -> SessionError:
    """Return the error for a store that cannot be written."""
    return SessionError(
        f"session {directory.name!r} cannot be kept in {directory} ({reason}); free some space there or use another "
        "disk; what it holds stays readable"
    )
