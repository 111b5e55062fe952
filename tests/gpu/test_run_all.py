"""The script for a GPU machine, as far as it can be seen without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import run
from gpu.prepare import packages, project_requirements
from gpu.report import page, write_report
from gpu.sets import SETS, builds_of

from modularbase_core.device.target import cpu_target, cuda_target

PROGRAMS = {
    "section": "programs",
    "set": "nano",
    "precision": "float16",
    "ok": False,
    "artefacts": [
        {"kind": "pack", "ok": False, "worst": 0.5, "bound": 2e-3, "calls": [{"program": "run", "error": 0.5}]},
    ],
}
SPEED = {
    **{"section": "speed", "set": "4gb", "precision": "float16", "ok": True, "prompt": 512, "recorded": 9},
    "graphs": {"prefill": 40000.0, "decode": {"1": 800.0, "8": 5000.0}, "step_bytes": 10**9},
    "eager": {"prefill": 40000.0, "decode": {"1": 300.0, "8": 2000.0}, "step_bytes": 10**9},
}
BANDWIDTH = {"section": "bandwidth", "set": "4gb", "precision": "float16", "ok": True, "copy_gb_s": 4000.0}
BANDWIDTH |= {"from_host_gb_s": 50.0, "logits_us": 30.0}
MISSED = {"section": "peers", "set": "4gb", "precision": "float16", "ok": None, "failed": "there was no time"}


def options(tmp_path, *more):
    given = run._parser().parse_args(["--device", "cpu", "--small", "--out", str(tmp_path), *more])
    given.scratch = tmp_path / "scratch"
    return given


def test_the_report_tells_what_failed_first_and_what_was_not_run():
    text = page({"a": PROGRAMS, "b": SPEED, "c": BANDWIDTH, "d": MISSED}, {"device": "cuda"})
    assert "**Failed:**\n- a: error too large: pack 5.0e-01 > 2e-03" in text
    assert "Not run:\n- d: there was no time" in text
    assert text.index("**Failed:**") < text.index("## Programs")


def test_the_report_gives_decode_as_a_share_of_the_memory_speed_measured():
    text = page({"b": SPEED, "c": BANDWIDTH}, {})
    assert "No check failed." in text
    assert "| 4gb | float16 | graphs | 40,000 | 800 | 5,000 | 20% | 9 |" in text


def test_every_way_to_fail_has_its_words():
    turns = {"section": "turns", "ok": False, "worst": 0.5, "bound": 2e-2, "swap_alike": False, "packs": {}}
    memory = {"section": "memory", "ok": False, "planned": 1 << 30, "measured": 5 << 30, "total": 4 << 30}
    named = {"set": "4gb", "precision": "float16"}
    speed = {**SPEED, "ok": False, "recorded": 0}
    text = page({"t": {**turns, **named}, "m": {**memory, **named}, "s": speed}, {})
    assert "- t: a swap changes bits, worst error 5.0e-01, bound 2e-02" in text
    assert "- m: 5,120 MiB were taken of 4,096" in text
    assert "- s: no call could be recorded as a graph" in text


def test_the_report_lies_beside_its_values(tmp_path):
    write_report({"b": SPEED}, {"device": "cuda"}, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["results"] == {"b": SPEED}
    assert (tmp_path / "report.md").read_text().startswith("# On this machine")


def test_without_a_driver_one_sentence_says_so():
    assert run.without_driver("libnothing.so.0") == (
        "no NVIDIA driver is here (libnothing.so.0 does not load); run this on a machine with a GPU"
    )


def test_what_was_not_prepared_is_told_and_nothing_is_run(tmp_path, capsys):
    assert run.main(["--carried", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "run tests/gpu/run_all --prepare FOLDER first" in capsys.readouterr().err
    (tmp_path / "prepared.json").write_text(json.dumps({"python": "2.7"}))
    assert run.main(["--carried", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "was prepared for Python 2.7, this is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checks_come_before_what_is_timed_and_torch_is_timed_once(tmp_path):
    found = run.jobs(options(tmp_path, "--sets", "tiny", "--precisions", "float32", "int8"))
    first = ["programs", "turns", "bandwidth", "speed", "memory", "swap", "peers"]
    assert [job.section for job in found] == [*first, "programs", "turns", "speed", "memory", "swap"]
    assert [job.precision for job in found] == ["float32"] * 7 + ["int8"] * 5


def test_what_has_no_kernels_is_left_out_with_its_reason(tmp_path, capsys):
    said = {"tiny": {"float16": "ok", "int3": "cuda has no kernels for int3"}}
    (tmp_path / "prepared.json").write_text(json.dumps({"sets": said}))
    given = options(tmp_path, "--carried", str(tmp_path), "--sets", "tiny", "--precisions", "float16", "int3")
    assert {job.precision for job in run.jobs(given)} == {"float16"}
    assert "tiny int3: left out, cuda has no kernels for int3" in capsys.readouterr().out


def test_a_section_is_a_process_whose_values_come_back(tmp_path):
    told = run.ended(run.Job("bandwidth", "tiny", "float32"), options(tmp_path), 60)
    assert told["ok"]
    assert told["copy_gb_s"] > 0


def test_a_section_that_dies_or_hangs_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    launcher = tmp_path / "run_all"
    monkeypatch.setattr(run, "LAUNCHER", launcher)
    launcher.write_text("import time; time.sleep(60)")
    told = run.ended(run.Job("swap", "tiny", "float32"), options(tmp_path), 0.2)
    assert (told["ok"], told["failed"]) == (False, "it ran longer than 0 s")
    launcher.write_text("raise SystemExit('an illegal memory access was encountered')")
    told = run.ended(run.Job("swap", "tiny", "float32"), options(tmp_path), 60)
    assert told["failed"] == "exit code 1: an illegal memory access was encountered"


def test_every_network_of_a_set_is_built_once():
    assert len(builds_of(SETS["nano"](), cuda_target(("sm_90",)), "float16")) == 4
    assert len(builds_of(SETS["4gb"](), cuda_target(("sm_90",)), "float16")) == 3
    assert len(builds_of(SETS["tiny"](), cpu_target(), "int8")) == 3


def test_what_travels_is_what_the_project_needs_there():
    found = packages(project_requirements())
    assert {"apache-tvm-ffi", "tokenizers", "lmdb", "zipp"} <= set(found)
    assert not {"numpy", "torch", "apache-tvm", "tomli", "huggingface-hub"} & set(found)


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(Path(run.LAUNCHER)), "--device", "cpu", "--sets", "tiny", "--precisions", "float32"]
    done = subprocess.run([*command, "--small", "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert {one["section"] for one in results.values()} == {*run.ORDER, "bandwidth"}
