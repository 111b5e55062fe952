"""What a run tells of itself: to a terminal, to a file that standard error is, to TensorBoard and to W&B."""

import errno
import io
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from walking import batches, loss_of, network

from modularbase_core.errors import ConfigError, TrainingError
from modularbase_core.train import logs
from modularbase_core.train.events import EventFile
from modularbase_core.train.logs import Progress, open_logs
from modularbase_core.train.loop import Settings, train
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.schedule import Schedule


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def walk(checkpoint: Path, names: tuple[str, ...], steps: int, *, quiet: bool = True) -> None:
    model = network()
    schedule = Schedule(steps=steps, warmup_steps=2)
    train(model, loss_of(model), batches, schedule, checkpoint, settings=Settings(logs=names), quiet=quiet)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the event files as TensorBoard does: what begins a session anew drops the later steps of the one before."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {name: [one for one in some if one[0] < event.step] for name, some in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_event_files_hold_loss_rate_gradient_and_speed(tmp_path: Path) -> None:
    walk(tmp_path / "run/checkpoint.pt", ("tensorboard",), 25)
    found = scalars(tmp_path / "run/logs")
    assert set(found) == {"loss", "rate", "gradient_norm", "tokens_per_second"}
    assert [step for step, _ in found["loss"]] == [10, 20, 25]
    assert found["loss"][0][1] > found["loss"][-1][1] > 0
    assert found["rate"][0][1] == 1.0
    assert all(value > 0 for name in ("gradient_norm", "tokens_per_second") for _, value in found[name])


def test_steps_that_a_killed_run_makes_again_are_shown_once(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoint.pt"
    walk(checkpoint, ("tensorboard",), 15)
    kept = checkpoint.read_bytes()
    walk(checkpoint, ("tensorboard",), 40)
    checkpoint.write_bytes(kept)  # as if the steps after 15 had been lost
    time.sleep(1.1)  # a file is named by the second
    walk(checkpoint, ("tensorboard",), 40)
    assert [step for step, _ in scalars(tmp_path / "run/logs")["loss"]] == [10, 15, 20, 30, 40]


def test_records_have_the_checksums_that_readers_ask_for(tmp_path: Path) -> None:
    from tensorboardX.crc32c import crc32c

    log = EventFile(tmp_path, 300)
    log.write(1 << 40, {"a" * 200: 0.5})
    log.close()
    (path,) = tmp_path.iterdir()
    content, count = path.read_bytes(), 0
    while content:
        length = int.from_bytes(content[:8], "little")
        for part, told in (
            (content[:8], content[8:12]),
            (content[12 : 12 + length], content[12 + length : 16 + length]),
        ):
            crc = crc32c(part)
            assert (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF == int.from_bytes(told, "little")
        content, count = content[16 + length :], count + 1
    assert count == 3
    assert scalars(tmp_path) == {"a" * 200: [(1 << 40, 0.5)]}


def test_a_log_that_finds_no_room_is_told_no_more_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(log: EventFile, step: int, values: Mapping[str, float]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventFile, "write", full)
    walk(tmp_path / "run/checkpoint.pt", ("tensorboard",), 25)
    assert capsys.readouterr().err == "note: EventFile is told no more (No space left on device)\n"
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 25


def test_a_folder_that_takes_no_logs_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").write_text("no folder")
    with pytest.raises(
        TrainingError, match=r"the logs in .*run/logs cannot be written \(File exists\); .*logs = \['none'\]"
    ):
        walk(tmp_path / "run/checkpoint.pt", ("tensorboard",), 5)
    walk(tmp_path / "run/checkpoint.pt", ("none",), 5)


def test_a_recipe_that_says_nothing_of_logs_has_event_files() -> None:
    assert next(item.default for item in fields(Recipe) if item.name == "logs") == ("tensorboard",)


def test_wandb_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.importlib, "import_module", missing)
    told = r"logs: wandb needs the package wandb, .*run `pip install 'modularbase\[wandb\]'` or leave wandb out"
    with pytest.raises(ConfigError, match=told):
        walk(tmp_path / "checkpoint.pt", ("wandb",), 1)


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_is_there_but_broken_is_not_taken_for_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.importlib, "import_module", lambda name: missing("protobuf"))
    with pytest.raises(ModuleNotFoundError, match="protobuf"):
        open_logs(("wandb",), Path("run"), 0, {})


def test_wandb_is_told_what_the_run_is_and_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finished"))

    def begin(**given: object) -> object:
        told.append(given)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=begin))
    walk(tmp_path / "nano/checkpoint.pt", ("wandb",), 12)
    begun, (ten, first), (twelve, last), end = told
    assert isinstance(begun, dict)
    assert (begun["project"], begun["name"], begun["resume"]) == ("modularbase", "nano", "allow")
    assert begun["config"]["steps"] == 12
    assert (ten, twelve, end) == (10, 12, "finished")
    assert isinstance(first, Mapping)
    assert set(first) == set(last) == {"loss", "rate", "gradient_norm", "tokens_per_second"}


def test_where_no_terminal_is_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    err, now = io.StringIO(), 100.0
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now))
    progress = Progress(40, 10, [], quiet=False)
    for number in range(11, 41):
        now += 7.0
        progress.step(number, 70, 2.0, {})
    progress.close()
    assert err.getvalue().splitlines() == [
        "step 15/40: loss 2.000, 10 tokens/s, 3 min left",
        "step 20/40: loss 2.000, 10 tokens/s, 2 min left",
        "step 25/40: loss 2.000, 10 tokens/s, 2 min left",
        "step 30/40: loss 2.000, 10 tokens/s, 70 s left",
        "step 35/40: loss 2.000, 10 tokens/s, 35 s left",
        "step 40/40: loss 2.000, 10 tokens/s, 0 s left",
    ]


def test_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    walk(tmp_path / "c.pt", ("none",), 4, quiet=False)
    assert "4/4" in err.getvalue()
    assert "tokens/s" in err.getvalue()
    assert "\nstep" not in err.getvalue()


def test_quiet_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        walk(tmp_path / f"{type(stream).__name__}.pt", ("none",), 4)
        assert stream.getvalue() == ""


def test_the_default_of_the_loop_writes_no_logs(tmp_path: Path) -> None:
    model = network()
    train(model, loss_of(model), batches, Schedule(steps=1), tmp_path / "c.pt", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 1
