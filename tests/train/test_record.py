"""run.json: sessions that end well, by an interruption, by a kill, or before their first step."""

import json
import os
import time
from contextlib import suppress

import pytest
import torch

from modularbase_core.train.recipe import Recipe
from modularbase_core.train.record import machine, plain, read_record, recorded

RECIPE = Recipe(name="tiny", stage="pack", tokens=1280, batch_tokens=128, windows=((1.0, 64),))


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "tiny").mkdir()
    return tmp_path / "tiny/checkpoint.pt"


def save(checkpoint, step, loss=2.5):
    torch.save({"network": {}, "step": step, "loss": loss}, checkpoint)


def test_a_run_in_one_session_is_told_whole(checkpoint):
    with recorded(RECIPE, checkpoint):
        save(checkpoint, 10, 1.23456)
    record = read_record(checkpoint)
    assert (record["steps"], record["tokens"], record["loss"]) == (10, 1280, 1.2346)
    assert record["recipe"] == json.loads(json.dumps(plain(RECIPE)))
    (session,) = record["sessions"]
    assert session.keys() == {"started", "first_step", "last_step", "seconds", "versions", "machine"}
    assert session["machine"] == machine()
    assert session["machine"]["cpu"]


def test_an_interrupted_run_has_a_session_more(checkpoint):
    with suppress(KeyboardInterrupt), recorded(RECIPE, checkpoint):
        save(checkpoint, 4)
        raise KeyboardInterrupt
    with recorded(RECIPE, checkpoint):
        save(checkpoint, 10)
    record = read_record(checkpoint)
    assert [(one["first_step"], one["last_step"]) for one in record["sessions"]] == [(0, 4), (4, 10)]
    assert record["seconds"] == pytest.approx(sum(one["seconds"] for one in record["sessions"]), abs=0.11)


def test_a_killed_session_ends_with_its_last_checkpoint(checkpoint):
    killed = recorded(RECIPE, checkpoint)
    killed.__enter__()
    save(checkpoint, 6)
    os.utime(checkpoint, (time.time() + 60, time.time() + 60))
    with recorded(RECIPE, checkpoint):
        save(checkpoint, 10)
    first, second = read_record(checkpoint)["sessions"]
    assert (first["last_step"], second["first_step"]) == (6, 6)
    assert first["seconds"] == pytest.approx(60, abs=5)


def test_a_session_without_a_step_leaves_no_trace(checkpoint):
    with pytest.raises(ValueError, match="x"), recorded(RECIPE, checkpoint):
        raise ValueError("x")
    assert not list(checkpoint.parent.iterdir())
    with recorded(RECIPE, checkpoint):
        save(checkpoint, 10)
    before = checkpoint.with_name("run.json").read_bytes()
    with pytest.raises(ValueError, match="x"), recorded(RECIPE, checkpoint):
        raise ValueError("x")
    assert checkpoint.with_name("run.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_record_that_cannot_be_read_is_begun_anew(checkpoint, content):
    checkpoint.with_name("run.json").write_bytes(content)
    with recorded(RECIPE, checkpoint):
        save(checkpoint, 10)
    assert read_record(checkpoint)["steps"] == 10
