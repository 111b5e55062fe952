"""Two processes under torchrun do what one does, and each goes on from the other's checkpoint."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from together import case_of, language, walk
from torch import Tensor

from modularbase_core.errors import ConfigError
from modularbase_core.train.loop import Settings
from modularbase_core.train.parallel import joined

CASES = (
    "ddp:parallel=ddp,optimiser=adamw",
    "ddp-muon:parallel=ddp,accumulate=2",
    "fsdp:parallel=fsdp,optimiser=adamw,accumulate=2,checkpoint_activations=true",
    "fsdp-muon:parallel=fsdp,offload=true",
    "frozen-ddp:parallel=ddp,optimiser=adamw",
    "frozen-fsdp:parallel=fsdp,optimiser=adamw",
)
GOING_ON = ("on-ddp:parallel=ddp,optimiser=adamw", "on-fsdp:parallel=fsdp,optimiser=adamw")
ENDING = ("full-ddp:parallel=ddp", "stopped-fsdp:parallel=fsdp,optimiser=adamw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of every case, after one alone began those that go on."""
    folder = tmp_path_factory.mktemp("together")
    for case in GOING_ON:
        name, settings = case_of(case)
        walk(folder / f"{name}.pt", replace(settings, parallel="ddp"), first=2)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    torchrun, program = (sys.executable, "-m", "torch.distributed.run"), str(Path(__file__).parents[1] / "together.py")
    done = subprocess.run(
        [*torchrun, "--standalone", "--nproc-per-node", "2", program, str(folder), *CASES, *GOING_ON, *ENDING],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def weights(checkpoint: Path) -> dict[str, Tensor]:
    network: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["network"]
    return network


def away(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return how far two ends lie apart, as a share of the way there."""
    start = language().state_dict()
    assert got.keys() == wanted.keys() == start.keys()
    apart = sum((got[name] - wanted[name]).square().sum() for name in start)
    return float((apart / sum((wanted[name] - start[name]).square().sum() for name in start)).sqrt())


def alone(tmp_path: Path, case: str, begun: Path | None = None) -> dict[str, Tensor]:
    """Return the weights that one process makes, from the start or from a checkpoint."""
    name, settings = case_of(case)
    checkpoint = tmp_path / "alone.pt"
    if begun is not None:
        checkpoint.write_bytes(begun.read_bytes())
    plain = Settings(optimiser=settings.optimiser, precision=settings.precision, device="cpu")
    walk(checkpoint, plain, frozen_base=name.startswith("frozen"))
    return weights(checkpoint)


def allowed(case: str) -> float:
    # Muon makes matrices orthogonal in bfloat16, which enlarges what sums in another order differ by
    return 1e-3 if "adamw" in case else 0.08


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(folder: Path, tmp_path: Path, case: str) -> None:
    got = weights(folder / f"{case_of(case)[0]}.pt")
    assert away(got, alone(tmp_path, case)) < allowed(case)
    assert away(got, language().state_dict() | {"base.norm.weight": torch.zeros(64)}) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_one_process_goes_on_from_what_two_began(folder: Path, tmp_path: Path, case: str) -> None:
    name, _ = case_of(case)
    got = alone(tmp_path, case, folder / f"{name}-half.pt")
    assert away(got, weights(folder / f"{name}.pt")) < allowed(case)


@pytest.mark.parametrize("case", GOING_ON)
def test_two_processes_go_on_from_what_one_began(folder: Path, tmp_path: Path, case: str) -> None:
    assert away(weights(folder / f"{case_of(case)[0]}.pt"), alone(tmp_path, case)) < allowed(case)


def test_a_disk_that_is_full_ends_all_processes(folder: Path) -> None:
    first, second = ((folder / f"full-ddp-{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("TrainingError: the checkpoint ")
    assert "nothing was saved so far" in first
    assert second.endswith("full-ddp.pt; it says why")
    assert not list(folder.glob("full-ddp*.p*t"))


def test_when_one_process_is_asked_to_stop_all_stop_after_the_same_step(folder: Path) -> None:
    for rank in (0, 1):
        assert (folder / f"stopped-fsdp-{rank}.txt").read_text().startswith("_Stopped")
    assert torch.load(folder / "stopped-fsdp.pt", weights_only=True)["step"] == 3


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, where it brings its compiler in
def test_one_process_may_divide_its_weights_so_as_to_offload_them(tmp_path: Path) -> None:
    case = "one:parallel=fsdp,optimiser=adamw,offload=true"
    walk(tmp_path / "one.pt", case_of(case)[1])
    assert away(weights(tmp_path / "one.pt"), alone(tmp_path, case)) < 1e-4
    assert not torch.distributed.is_initialized()


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigError, match="offload works with parallel = 'fsdp' alone"),
        joined("ddp", "cpu", offload=True),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is 'cuda', but torch finds no NVIDIA GPU"), joined("ddp", "cuda"):
        pass
    with joined("ddp", "auto") as ranks:
        assert (ranks.device.type, ranks.count, ranks.first) == ("cpu", 1, True)
