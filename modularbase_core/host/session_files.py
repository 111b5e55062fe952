"""The sessions that are on disk: which there are, and how one is opened or goes away.

What a session says of itself is read by `session_values`, what was said in it by `transcript`; carrying one elsewhere
is left to `session_export` and `session_import`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modularbase_core.config import EngineConfig
from modularbase_core.context import directory as places
from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import SessionError, SessionInUse, nearest
from modularbase_core.host.conversations import NAME, session_path
from modularbase_core.host.session_values import HeldWith, last_token, read_base, read_state

IMPORTED: Final = ".import-"
DELETED: Final = ".deleted-"
"""Beginnings of folders that are not sessions yet, or no longer; no session's name begins with a dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as a list tells it.

    bytes_on_disk: what its file takes. used: seconds since 1970. tokens, base: None where they cannot be read.
    problem: why it cannot be used, or what of it was lost, a sentence; empty where all is well.
    """

    name: str
    bytes_on_disk: int
    used: float
    tokens: int | None = None
    base: HeldWith | None = None
    in_use: bool = False
    problem: str = ""


def list_sessions(config: EngineConfig) -> list[SessionInfo]:
    """Describe every session, the last used first; raises SessionError where their folder cannot be read."""
    described = (_describe(path, config.session_bytes) for path in _paths(config))
    return sorted((one for one in described if one is not None), key=lambda one: -one.used)


def find_session(config: EngineConfig, name: str) -> SessionInfo:
    """Describe one session; raises InputError for what cannot be a name and SessionError where there is none."""
    described = _describe(existing_path(config, name), config.session_bytes)
    if described is None:
        raise SessionError(f"session {name!r} went away meanwhile; `modularbase session list` shows what there is")
    return described


def open_session(config: EngineConfig, name: str) -> ColdStore:
    """Open the store of a session that is there; raises as `find_session` and `ColdStore.open` do."""
    return ColdStore.open(existing_path(config, name), limit_bytes=config.session_bytes, create=False)


def delete_session(config: EngineConfig, name: str) -> None:
    """Delete a session, a damaged one too; raises SessionError where there is none or it is in use."""
    path = existing_path(config, name)
    if path.is_symlink():
        raise SessionError(f"session {name!r} is a link to {path.readlink()}; delete that folder, then the link {path}")
    claim = places.claim(path, create=False)
    doomed = path.with_name(f"{DELETED}{secrets.token_hex(8)}")
    try:
        path.rename(doomed)  # one step, so that no half of it is ever listed
        shutil.rmtree(doomed)
    except OSError as error:
        raise SessionError(f"session {name!r} cannot be deleted ({error.strerror}); check who owns {path}") from error
    finally:
        os.close(claim)


def sweep(config: EngineConfig) -> None:
    """Clear away what imports and deletions that were killed left behind."""
    for folder in config.sessions_dir.glob(f"{DELETED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in config.sessions_dir.glob(f"{IMPORTED}*"):
        with suppress(SessionError):  # an import that still runs
            claim = places.claim(folder, create=True)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(claim)


def existing_path(config: EngineConfig, name: str) -> Path:
    """Return the folder of a session that is there; raises InputError or SessionError, naming the nearest."""
    path = session_path(config, name)
    if not (path / places.DATA_FILE).is_file():
        known = [one.name for one in _paths(config)]
        raise SessionError(
            f"there is no session {name!r} in {config.sessions_dir}{nearest(name, known)}; "
            "`modularbase session list` shows what there is"
        )
    return path


def _paths(config: EngineConfig) -> list[Path]:
    folder = config.sessions_dir
    try:
        if not folder.is_dir():
            return []
        return [one for one in folder.iterdir() if NAME.fullmatch(one.name) and (one / places.DATA_FILE).is_file()]
    except OSError as error:
        raise SessionError(f"{folder} cannot be read ({error.strerror}); check who owns it") from error


def _describe(path: Path, limit_bytes: int) -> SessionInfo | None:
    try:
        file = (path / places.DATA_FILE).stat()
    except FileNotFoundError:  # deleted meanwhile
        return None
    info = SessionInfo(name=path.name, bytes_on_disk=file.st_blocks * 512, used=file.st_mtime)
    try:
        with ColdStore.open(path, limit_bytes=limit_bytes, create=False) as store:
            state = read_state(store, last_token(store))
            info = replace(info, tokens=state.told_tokens, base=read_base(store))
            return replace(info, problem=" ".join(store.take_faults()[:1]))
    except SessionInUse:
        return replace(info, in_use=True)
    except SessionError as error:
        return replace(info, problem=str(error))
