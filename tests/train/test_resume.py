"""Checkpoints: whole whatever happens, of one recipe, and a run that goes on as if it had never stopped."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from walking import batches, loss_of, network, same

from modularbase_core.errors import ConfigError, DataError, TrainingError
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks
from modularbase_core.train import saving
from modularbase_core.train.checkpoints import part_of, steps_done
from modularbase_core.train.loop import Settings, train
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.saving import keys_of, read_checkpoint, write_checkpoint
from modularbase_core.train.schedule import Schedule

KILLED = """
import os, sys
from pathlib import Path
import torch
from walking import batches, loss_of, network
from modularbase_core.train.loop import Settings, train
from modularbase_core.train.schedule import Schedule

torch.set_num_threads(1)
for optimiser in ("muon", "adamw"):
    if os.fork() == 0:  # spares the second import of torch
        break
else:
    os.wait(), os.wait()
    sys.exit()

def told(step):
    for number, batch in enumerate(batches(step)):
        os.write(1, f"{optimiser} {os.getpid()} {step + number}\\n".encode())
        yield batch

model, checkpoint = network(dropout=0.2), Path(sys.argv[1], f"{optimiser}.pt")
train(model, loss_of(model), told, Schedule(steps=120, warmup_steps=2), checkpoint,
      settings=Settings(optimiser=optimiser), quiet=True, save_seconds=0.0)
"""


def test_a_run_killed_at_any_step_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    last = {name: random.Random(name).randrange(3, 40) for name in ("muon", "adamw")}
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    killed: dict[str, int] = {}
    with child:
        assert child.stdout is not None
        for name, process, step in map(str.split, child.stdout):
            if name not in killed and int(step) >= last[name]:
                os.kill(int(process), signal.SIGKILL)  # wherever it is, in a step or in a checkpoint
                killed[name] = int(step)
    assert killed.keys() == last.keys()
    schedule, threads = Schedule(steps=120, warmup_steps=2), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in killed:
            assert killed[name] - 1 <= steps_done(tmp_path / f"{name}.pt") < 120
            resumed, settings = network(dropout=0.2), Settings(optimiser=name)
            train(resumed, loss_of(resumed), batches, schedule, tmp_path / f"{name}.pt", settings=settings, quiet=True)
            whole = network(dropout=0.2)
            train(
                whole, loss_of(whole), batches, schedule, tmp_path / f"{name}-whole.pt", settings=settings, quiet=True
            )
            assert same(whole, resumed)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system itself refuse to write more to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_finds_no_room_ends_the_run_and_the_last_one_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, model = tmp_path / "run/c.pt", network()
    train(model, loss_of(model), batches, Schedule(steps=3), checkpoint, quiet=True)
    before = checkpoint.read_bytes()
    wanted = r"the checkpoint .*c\.pt needs 0\.0 MB, but .* MB are free there; make room or use another runs folder, "
    wanted += "and run again: the last checkpoint is whole and the run goes on from it"
    with files_of_at_most(1000), pytest.raises(TrainingError, match=wanted):
        train(model, loss_of(model), batches, Schedule(steps=5), checkpoint, quiet=True)
    assert checkpoint.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(TrainingError, match=wanted):
            train(model, loss_of(model), batches, Schedule(steps=5), checkpoint, quiet=True, save_seconds=0.0)
        with pytest.raises(TrainingError, match="nothing was saved so far"):
            train(model, loss_of(model), batches, Schedule(steps=5), tmp_path / "run/new.pt", quiet=True)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["c.pt"]
    assert steps_done(checkpoint) == 3


def test_a_checkpoint_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        TrainingError, match=r"file/c\.pt cannot be written \(File exists\); see to that or use another"
    ):
        write_checkpoint({"network": {}}, tmp_path / "file/c.pt")


def test_a_failure_that_is_not_the_disks_stays_what_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    write_checkpoint({"network": {}, "step": 1}, tmp_path / "c.pt")
    with pytest.raises(AttributeError, match="pickle"):
        write_checkpoint({"network": {}, "step": lambda: 2}, tmp_path / "c.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert steps_done(tmp_path / "c.pt") == 1


def test_what_a_killed_run_left_half_written_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "c.part").write_text("half")
    write_checkpoint({"network": {"a": torch.ones(2)}, "step": 1}, tmp_path / "c.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert torch.equal(part_of(tmp_path / "c.pt", "")["a"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pt"
    if content is None:
        write_checkpoint({"network": {"a": torch.ones(2000)}}, path)
        content = path.read_bytes()[:4000]
    path.write_bytes(content)
    for mapped in (False, True):
        with pytest.raises(
            DataError, match=r"c\.pt is no checkpoint, or a damaged one \(.*\); remove it to begin anew"
        ):
            read_checkpoint(path, mapped=mapped)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(DataError, match=r"c\.pt is no checkpoint, or a damaged one \(it holds no network\)"):
        read_checkpoint(path)


def recipe(folder: Path) -> Recipe:
    (folder / "tokenizer.json").write_text("{}")
    blocks = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
    return Recipe(
        name="tiny",
        stage="base",
        tokens=40960,
        mix=(Source(files=("a.jsonl",), tokens=200), Source(files=("b.jsonl",), tokens=300)),
        tokenizer="tokenizer.json",
        folder=folder,
        architecture=BaseArchitecture(blocks=blocks, vocabulary_size=300, understanding_layers=1, fusion_layers=1),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"matrix_rate": 0.01},
            "was begun with matrix_rate = 0.02, but the recipe says 0.01; give the recipe the former",
        ),
        ({"tokens": 81920}, "begun with tokens = 40960, but the recipe says 81920"),
        ({"optimiser": "adamw"}, 'begun with optimiser = "muon", but the recipe says "adamw"'),
        ({"base": "nano"}, 'begun with base = null, but the recipe says "nano"'),
        ({"mix": (Source(files=("a.jsonl",), tokens=200),)}, "begun with mix = "),
        (
            {"mix": (Source(files=("a.jsonl",), tokens=200), Source(files=("b.jsonl",), tokens=350))},
            '"tokens": 300}], but the recipe says ',
        ),
    ],
)
def test_a_run_goes_on_by_the_recipe_that_began_it_alone(tmp_path: Path, change: dict[str, object], told: str) -> None:
    began, checkpoint = recipe(tmp_path), tmp_path / "c.pt"

    def walk(by: Recipe, steps: int) -> None:
        model = network()
        train(model, loss_of(model), batches, Schedule(steps=steps), checkpoint, recipe=keys_of(by), quiet=True)

    walk(began, 2)
    with pytest.raises(ConfigError, match=re.escape(told)):
        walk(replace(began, **change), 4)
    may_change = {"ship": "out", "dtype": "int4", "accumulate": 2, "device": "cpu", "logs": ("none",)}
    may_change |= {"compile": False, "threads": 3}
    walk(replace(began, **may_change), 4)
    assert steps_done(checkpoint) == 4


def test_a_changed_architecture_or_tokenizer_is_named(tmp_path: Path) -> None:
    began = recipe(tmp_path)
    state, path = {"recipe": keys_of(began)}, tmp_path / "c.pt"
    assert began.architecture is not None
    wider = replace(
        began, architecture=replace(began.architecture, blocks=replace(began.architecture.blocks, ffn_size=96))
    )
    with pytest.raises(ConfigError, match=r"begun with architecture\.blocks\.ffn_size = 64, but the recipe says 96"):
        saving.check_keys(keys_of(wider), state, path)
    (tmp_path / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(ConfigError, match=r"begun with tokenizer = 44136fa355b3678a.*, but the recipe says"):
        saving.check_keys(keys_of(began), state, path)


def test_a_checkpoint_of_before_there_were_keys_goes_on(tmp_path: Path) -> None:
    checkpoint, model = tmp_path / "c.pt", network()
    train(model, loss_of(model), batches, Schedule(steps=9), tmp_path / "whole.pt", quiet=True)
    first = network()
    train(first, loss_of(first), lambda step: islice(batches(step), 4), Schedule(steps=9), checkpoint, quiet=True)
    state = torch.load(checkpoint, weights_only=True)
    torch.save({name: state[name] for name in ("network", "optimisers", "step")}, checkpoint)
    second = network()
    train(second, loss_of(second), batches, Schedule(steps=9), checkpoint, recipe=keys_of(recipe(tmp_path)), quiet=True)
    assert steps_done(checkpoint) == 9
    assert same(model, second)
