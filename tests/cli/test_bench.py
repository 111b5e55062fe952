"""`modularbase bench` on the shipped nano set: figures that belong together, and what it refuses."""

import json

import pytest
from click.testing import CliRunner

from modularbase_core.cli.bench import bench

SHORT = ["--prompt-tokens", "40", "--tokens", "4", "--rounds", "1", "--quiet"]


@pytest.fixture
def run(cache):
    return lambda *words: CliRunner().invoke(bench, [*words, "--cache", str(cache)])


def test_its_figures_belong_together(run):
    done = run(*SHORT, "--batch", "2", "--json", "--threads", "1")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["pack"] == "general_chat"
    assert sorted(found["decode"]) == ["1", "2"]
    assert found["prefill"] > found["decode"]["1"] > 0
    used = found["decode"]["1"] * found["step_bytes"] / found["read_bytes_per_second"]
    assert found["bandwidth_share"] == pytest.approx(used)


def test_fewer_bits_are_fewer_bytes_a_step(run):
    found = {
        one: json.loads(run(*SHORT, "--batch", "1", "--json", "--precision", one).stdout)["step_bytes"]
        for one in ("float32", "auto", "int8")
    }
    assert found["int8"] < found["auto"] < 0.5 * found["float32"]


def test_a_table_tells_what_a_step_reads(run):
    told = run(*SHORT, "--pack", "python").stdout
    assert "prefill, 40 tokens" in told
    assert "decode, 1 conversation " in told
    assert "of it is used" in told


def test_what_does_not_fit_the_window_is_refused(run):
    done = run("--prompt-tokens", "5000")
    assert done.exit_code == 1
    assert "do not fit the window of 1024" in str(done.exception)
