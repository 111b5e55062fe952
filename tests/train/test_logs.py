"""What a run tells of itself: to a terminal, to a file that standard error is, to TensorBoard and to W&B."""

import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from walking import batches, loss_of, network

from modularbase_core.errors import ConfigError
from modularbase_core.train import logs
from modularbase_core.train.logs import Progress, open_logs
from modularbase_core.train.loop import Settings, train
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
    pytest.importorskip("tensorboardX")
    walk(tmp_path / "run/checkpoint.pt", ("tensorboard",), 25)
    found = scalars(tmp_path / "run/logs")
    assert set(found) == {"loss", "rate", "gradient_norm", "tokens_per_second"}
    assert [step for step, _ in found["loss"]] == [10, 20, 25]
    assert found["loss"][0][1] > found["loss"][-1][1] > 0
    assert found["rate"][0][1] == 1.0
    assert all(value > 0 for name in ("gradient_norm", "tokens_per_second") for _, value in found[name])


def test_steps_that_a_killed_run_makes_again_are_shown_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    checkpoint = tmp_path / "run/checkpoint.pt"
    walk(checkpoint, ("tensorboard",), 15)
    kept = checkpoint.read_bytes()
    walk(checkpoint, ("tensorboard",), 40)
    checkpoint.write_bytes(kept)  # as if the steps after 15 had been lost
    time.sleep(1.1)  # a file is named by the second
    walk(checkpoint, ("tensorboard",), 40)
    assert [step for step, _ in scalars(tmp_path / "run/logs")["loss"]] == [10, 15, 20, 30, 40]


def test_without_being_asked_event_files_are_written_where_there_is_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk(tmp_path / "none/checkpoint.pt", ("none",), 1)
    assert not (tmp_path / "none/logs").exists()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    walk(tmp_path / "run/checkpoint.pt", (), 1)
    assert not (tmp_path / "run/logs").exists()
    monkeypatch.undo()
    pytest.importorskip("tensorboardX")
    walk(tmp_path / "run/checkpoint.pt", (), 2)
    assert scalars(tmp_path / "run/logs")["loss"][0][0] == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "tensorboard",
            r"needs the package tensorboardX, .*run `pip install 'modularbase\[train\]'` or leave tensorboard",
        ),
        ("wandb", r"needs the package wandb, .*run `pip install 'modularbase\[wandb\]'` or leave wandb out"),
    ],
)
def test_a_log_that_was_asked_for_needs_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr(logs.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=told):
        walk(tmp_path / "checkpoint.pt", (name,), 1)


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_is_there_but_broken_is_not_taken_for_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.importlib, "import_module", lambda name: missing("protobuf"))
    with pytest.raises(ModuleNotFoundError, match="protobuf"):
        open_logs((), Path("run"), 0, {})


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
