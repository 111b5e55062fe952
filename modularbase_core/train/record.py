"""RUNS/NAME/run.json: what ran, on what, for how long and with what loss, so that a model card can quote it."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import torch
from importlib_metadata import version

from modularbase_core.device.target import physical_cores
from modularbase_core.errors import TrainingError
from modularbase_core.sdk.architecture import architecture_to_dict
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.saving import read_checkpoint, whole_file

RECORD_FILE: Final = "run.json"
_CPUINFO: Final = Path("/proc/cpuinfo")


@contextmanager
def recorded(recipe: Recipe, checkpoint: Path) -> Iterator[None]:
    """Record the session in which the block trains `recipe`, beside its checkpoint; an error ends it too.

    recipe: as resolved, with what installed packs brought. A session that was killed is taken to have ended with the
    checkpoint that it left, and one that made no step leaves no trace.
    """
    path = checkpoint.with_name(RECORD_FILE)
    before = path.read_bytes() if path.exists() else None
    sessions = [_ended(session, checkpoint) for session in read_record(checkpoint).get("sessions", [])]
    session: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "first_step": _progress(checkpoint)[0],
        "versions": {"modularbase": version("modularbase"), "torch": torch.__version__},
        "machine": machine(),
    }
    said = plain(recipe)
    _write(path, _laid_out({"recipe": said, "sessions": [*sessions, session]}))
    begun, failed = time.monotonic(), True
    try:
        yield
        failed = False
    finally:
        step, loss = _progress(checkpoint)
        session |= {"last_step": step, "seconds": round(time.monotonic() - begun, 1)}
        sessions.append(session)
        done = {
            "steps": step,
            "tokens": step * recipe.batch_tokens,
            "seconds": round(sum(one["seconds"] for one in sessions), 1),
            "loss": loss,
        }
        with suppress(TrainingError) if failed else nullcontext():  # why the run failed is told, not this
            made = step > session["first_step"]
            _write(path, _laid_out({"recipe": said, **done, "sessions": sessions}) if made else before)


def read_record(checkpoint: Path) -> dict[str, Any]:  # Any: JSON
    """Return what is recorded of the run with this checkpoint; nothing where no record is, or none that can be read."""
    try:
        value = json.loads(checkpoint.with_name(RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # it is told, never trained from
    return value if isinstance(value, dict) else {}


def machine() -> dict[str, str | int]:
    """Describe what the bits of a run depend on besides its recipe and versions."""
    told: dict[str, str | int] = {"cpu": _cpu(), "cores": physical_cores(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        told["gpu"] = torch.cuda.get_device_name()
    return told


def plain(recipe: Recipe) -> dict[str, Any]:  # Any: JSON
    """Return the recipe as JSON values, defaults too; its folder is left out, and what it does not name."""
    values = {item.name: getattr(recipe, item.name) for item in dataclasses.fields(recipe) if item.name != "folder"}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return architecture_to_dict(value) if hasattr(value, "kind") else dataclasses.asdict(value)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _ended(session: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return a session with its end; the one that a killed process did not write is the checkpoint's."""
    if "seconds" in session:
        return session
    started = datetime.fromisoformat(session["started"]).timestamp()
    until = checkpoint.stat().st_mtime if checkpoint.exists() else started
    return {**session, "last_step": _progress(checkpoint)[0], "seconds": round(max(0.0, until - started), 1)}


def _progress(checkpoint: Path) -> tuple[int, float | None]:
    """Return the steps behind a checkpoint, and the loss that it tells."""
    if not checkpoint.exists():
        return 0, None
    state = read_checkpoint(checkpoint, mapped=True)
    loss = state.get("loss")
    return int(state["step"]), None if loss is None else round(float(loss), 4)


def _cpu() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _laid_out(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        return
    with whole_file(path, "the record", len(content)) as file:
        file.write(content)
