"""What pip's outcomes are told as, and that a real pip is run with care."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_wheels import BROKEN, NOT_FOUND, FakePip

from modularbase_core.errors import PipError
from modularbase_core.packs.pip import NotOffered, Outcome, Pip, Sources

BUILD = """  error: subprocess-exited-with-error

  × Building wheel for x did not run successfully.
  │ exit code: 1
ERROR: Failed to build one or more wheels
"""
MANAGED = """error: externally-managed-environment

× This environment is externally managed
"""


def failing(stderr):
    fake = FakePip()
    fake.answers["install"] = fake.answers["uninstall"] = Outcome(1, stderr)
    return Pip(runner=fake)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (NOT_FOUND.format("x==9", "1.0.0, 1.1.0"), r"no version fits x==9; there are 1\.0\.0, 1\.1\.0"),
        (MANAGED, "belongs to the operating system.*install modularbase in a virtual environment"),
        (BUILD, r"pip failed on x==9 \(subprocess-exited-with-error\)"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            r"\(Could not install packages due to an OSError: \[Errno 28\] No space left on device\)",
        ),
        (
            "ERROR: Ignored the following versions that require a different python version: "
            "2.0 Requires-Python >=3.99\n" + NOT_FOUND.format("x==9", "none"),
            r"x==9 2\.0 needs Python >=3\.99",
        ),
        ("Traceback\nRecursionError: too deep\n", r"\(RecursionError: too deep\)"),
        ("", r"\(it said nothing\)"),
    ],
)
def test_a_failure_of_pip_is_one_sentence(said, told):
    with pytest.raises(PipError, match=told) as failed:
        failing(said).install(["x==9"], Sources())
    assert "\n" not in str(failed.value)
    assert failed.value.output == said


@pytest.mark.parametrize(("network", "unreachable"), [("", False), (BROKEN, True)])
def test_a_name_that_is_not_there_is_told_from_a_network_that_is_not(tmp_path, network, unreachable):
    with pytest.raises(NotOffered, match="out of reach" if unreachable else "no distribution 'x' is offered") as failed:
        Pip(runner=FakePip(offline=unreachable)).wheel("x", tmp_path, Sources())
    assert failed.value.unreachable == unreachable


def test_pip_gets_the_options_and_no_word_can_become_one(tmp_path):
    fake = FakePip()
    where = Sources(index_url="http://a", extra_index_urls=("http://b",), find_links=("c", "d"), pre=True)
    with pytest.raises(NotOffered):
        Pip(runner=fake).wheel("--help", tmp_path, where)
    (words,) = fake.asked
    assert words[-2:] == ["--", "--help"]
    given = " ".join(words)
    assert "--index-url http://a --extra-index-url http://b --find-links c --find-links d --pre" in given
    assert "--no-deps" in words
    assert "--no-input" in words


def test_what_pip_leaves_in_place_is_an_error():
    fake = FakePip()
    fake.answers["uninstall"] = Outcome(0, "  Not uninstalling x at /usr/lib, outside environment /venv\n")
    with pytest.raises(PipError, match=r"pip did not uninstall it: Not uninstalling x at /usr/lib"):
        Pip(runner=fake).uninstall(["x"])


def test_an_environment_without_pip_says_what_to_do(monkeypatch):
    monkeypatch.setattr("modularbase_core.packs.pip.importlib.util.find_spec", lambda name: None)
    with pytest.raises(PipError, match=r"has no pip, which installs packs; run `.* -m ensurepip`"):
        Pip()


def test_the_real_pip_answers_on_standard_error_alone(capfd, tmp_path):
    with pytest.raises(PipError, match="modularbase-nothing"):
        Pip().wheel("modularbase-nothing", tmp_path, Sources(find_links=(str(tmp_path),)), "--no-index")
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_waits_until_pip_has_put_things_back(tmp_path):
    # a stand-in for pip that tidies up for a while after SIGINT
    slow = (
        "import pathlib, sys, time\n"
        "try:\n    pathlib.Path(sys.argv[1], 'begun').touch()\n    time.sleep(30)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n    pathlib.Path(sys.argv[1], 'tidy').touch()\n"
    )
    program = (
        "import sys\nfrom modularbase_core.packs.pip import _run\n"
        f"try:\n    _run([sys.executable, '-c', {slow!r}, {str(tmp_path)!r}], False)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does, to both
    out, _ = parent.communicate(timeout=30)
    assert out == b"interrupted\n"
    assert (tmp_path / "tidy").exists()
