"""Checkpoint files: written whole or not at all, read with care, and bound to the recipe that made them.

What a checkpoint holds is the loop's.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from modularbase_core.errors import ConfigError, DataError, TrainingError
from modularbase_core.train.recipe import Recipe

MAY_CHANGE: Final = frozenset(
    {"name", "folder", "data", "router", "ship", "dtype", "over", "manifest", "examples", "others", "threshold"}
    | {"accumulate", "compile", "checkpoint_activations", "parallel", "offload", "device", "threads", "logs"}
    | {f"teacher.{key}" for key in ("key_variable", "concurrency", "requests_per_minute", "retries", "timeout_seconds")}
)
"""Keys of a recipe that decide nothing of what is learnt: a run that resumes may have others."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Return what the recipe says of what is learnt: each key's value as JSON, a tokenizer by its digest."""
    said = {
        key: json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False)
        for item in dataclasses.fields(recipe)
        if item.name not in MAY_CHANGE
        for key, value in _flat(item.name, getattr(recipe, item.name))
        if key not in MAY_CHANGE
    }
    file = recipe.folder / recipe.tokenizer
    if file.is_file():
        said["tokenizer"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return said


def check_keys(said: Mapping[str, str], state: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError, naming the first key that changed, when `state` of `path` was made by another recipe.

    said: of the recipe now, as `keys_of` gives it. A checkpoint of before there were keys fits every recipe.
    """
    kept: Mapping[str, str] = state.get("recipe", {})
    for key in said:
        if key in kept and kept[key] != said[key]:
            was, now = _where_they_part(kept[key], said[key])
            raise ConfigError(
                f"{path} was begun with {key} = {was}, but the recipe says {now}; "
                "give the recipe the former, or the run another name, or remove the checkpoint"
            )


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:  # Any: the loop's and older versions' state
    """Read a checkpoint onto the CPU; raises DataError for what is none, or only part of one.

    mapped: leave the tensors in the file until they are used.
    """
    try:
        if not zipfile.is_zipfile(path):  # torch.load would take rubbish for a pickle and fail in any way
            raise ValueError("it is no archive of torch's, or its end is missing")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(state, dict) or "network" not in state:
            raise ValueError("it holds no network")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of rubbish torch.load tells in errors of any kind, its reader's own too
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} is no checkpoint, or a damaged one ({reason}); remove it to begin anew") from error
    return state


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` to `path`; raises TrainingError when there is no room."""
    with whole_file(path, "the checkpoint", _tensor_bytes(state)) as file:
        torch.save(dict(state), file)


@contextmanager
def whole_file(path: Path, what: str, needed: int) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` when the block ends; whatever fails, what was at `path` stays whole.

    needed: bytes that will be written, or most of them. Raises TrainingError, which calls the file `what`, when the
    file system does not take them.
    """
    part = path.with_suffix(".part")  # the one that a killed run leaves is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(error, what, needed, path) from error
    part.unlink(missing_ok=True)
    try:
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # sooner than after writing half of it
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise _cannot_write(cause, what, needed, path) from error


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return where torch's draws stand, on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Let torch's draws go on from `state`; another kind of device than it was made on begins its own anew."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _cannot_write(cause: OSError, what: str, needed: int, path: Path) -> TrainingError:
    if cause.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        why = f"needs {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free there; make room"
    else:
        why = f"cannot be written ({cause.strerror}); see to that"
    last = "the last checkpoint is whole and the run goes on from it" if path.exists() else "nothing was saved so far"
    return TrainingError(f"{what} {path} {why} or use another runs folder, and run again: {last}")


def _os_error(error: BaseException | None) -> OSError | None:
    """Return what the file system said; torch hides it behind a RuntimeError of its own."""
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_tensor_bytes, inner))


def _flat(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the keys of a table, and of tables in it, with dots between."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _flat(f"{key}.{item.name}", getattr(value, item.name))
    else:
        yield key, value


def _plain(value: object) -> object:
    """Return what JSON can hold of a value in a list."""
    if dataclasses.is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)


def _where_they_part(*texts: str) -> list[str]:
    """Return two texts, or of long ones the stretch where they begin to differ."""
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    first = 0 if max(map(len, texts)) <= 80 else max(0, same - 30)
    cut = [text[first : first + 80] for text in texts]
    return [
        f"{'...' * (first > 0)}{part}{'...' * (first + 80 < len(text))}" for part, text in zip(cut, texts, strict=True)
    ]
