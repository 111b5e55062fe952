"""Programs run confined: what they try fails, ends, or stays in their own folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modularbase_core.errors import ConfigError
from modularbase_core.evaluate.sandbox import Limits, Program, Sandbox

LIMITS = Limits(seconds=6.0, cpu_seconds=1, memory_bytes=256 << 20, output_bytes=4096)
ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="held by Linux alone")


@pytest.fixture
def sandbox():
    with Sandbox(LIMITS) as made:
        yield made


def run(sandbox, code, tests=""):
    return sandbox.run(Program(code, tests))


def test_a_right_program_passes_and_its_output_is_kept(sandbox):
    done = run(sandbox, ADD + "print('héllo')", TESTS)
    assert (done.passed, done.reason, done.output) == (True, "", "héllo\n")
    assert 0 < done.seconds < LIMITS.seconds


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def add(a, b):\n    return a - b\n", "AssertionError"),
        ("def add(a, b:\n", "SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("def add(a, b):\n    return add(a, b)\n", "RecursionError"),
        ("class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E", "E"),
        ("input()", "EOFError"),
    ],
)
def test_a_wrong_program_says_why(sandbox, code, reason):
    done = run(sandbox, code, TESTS)
    assert not done.passed
    assert done.reason.startswith(reason)


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "def add(a, b):\n    import sys\n    sys.exit(0)",
        "def add(a, b):\n    quit()",
        # what it can guess of how a pass is told
        'import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b\'{"nonce": "", "held": {}}\')\n'
        "    except OSError:\n        pass\nos._exit(0)",
        "import atexit, os\natexit.register(print, 'passed')\nos.abort()",
    ],
)
def test_what_ends_before_its_tests_has_not_passed(sandbox, code):
    done = run(sandbox, code, TESTS)
    assert not done.passed
    assert done.reason.startswith(("exit", "crash"))


def test_an_infinite_loop_ends(sandbox):
    done = run(sandbox, "while True:\n    pass")
    assert (done.passed, done.reason) == (False, "timeout")


def test_what_sleeps_or_catches_everything_ends_by_the_clock():
    with Sandbox(Limits(seconds=1.0, cpu_seconds=60)) as sandbox:
        for code in (
            "import time\ntime.sleep(60)",
            "import signal, time\nfor s in (2, 15, 24):\n    signal.signal(s, lambda *a: None)\ntime.sleep(60)",
        ):
            done = run(sandbox, code)
            assert (done.passed, done.reason) == (False, "timeout")
            assert done.seconds < 3


def test_memory_is_limited(sandbox):
    done = run(sandbox, "x = bytearray(400 << 20)")
    assert (done.passed, done.reason.split(":")[0]) == (False, "MemoryError")


def test_huge_output_ends_it_and_is_cut(sandbox):
    done = run(sandbox, "while True:\n    print('x' * 1000)")
    assert (done.passed, done.reason) == (False, "output")
    assert len(done.output) == LIMITS.output_bytes


def test_a_huge_file_cannot_be_written(sandbox):
    done = run(sandbox, "with open('big', 'wb') as file:\n    file.write(bytes(2 << 20))")
    assert not done.passed


def test_a_small_file_can_be_written_where_it_runs_and_is_gone_afterwards(sandbox):
    code = (
        "import os, pathlib, tempfile\npathlib.Path('note').write_text('x')\n"
        "assert pathlib.Path.home() == pathlib.Path.cwd() and pathlib.Path('~/note').expanduser().read_text() == 'x'\n"
        "tempfile.NamedTemporaryFile().write(b'x')\nprint(os.getcwd())"
    )
    done = run(sandbox, code)
    assert (done.passed, done.reason) == (True, "")
    assert not Path(done.output.strip()).exists()


@linux
def test_nothing_is_written_read_or_changed_outside(sandbox, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    for action in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(outside)!r}, 'a').write('more')",
        f"print(open({str(outside)!r}).read())",
        f"import os\nos.remove({str(outside)!r})",
        f"import os\nos.rename({str(outside)!r}, 'here')",
        f"import os\nos.chmod({str(outside)!r}, 0)",
        f"import os\nos.truncate({str(outside)!r}, 0)",
        f"import os\nos.symlink({str(outside)!r}, 'link')\nprint(open('link').read())",
    ):
        done = run(sandbox, action)
        assert (done.passed, done.reason.split(":")[0]) == (False, "PermissionError"), action
    assert outside.read_text() == "secret"
    assert outside.stat().st_mode & 0o400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"]


def test_the_environment_is_not_there(sandbox, monkeypatch):
    monkeypatch.setenv("MODULARBASE_SECRET", "s3cret")
    done = run(sandbox, "import os\nassert 'MODULARBASE_SECRET' not in os.environ\nprint(sorted(os.environ))")
    assert done.passed
    assert "USER" not in done.output
    if sys.platform == "linux":
        done = run(sandbox, "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())")
        assert not done.passed
        assert "s3cret" not in done.output


@linux
@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import socket\nsocket.socket(socket.AF_UNIX)",
    ],
)
def test_there_is_no_network(sandbox, code):
    done = run(sandbox, code)
    assert not done.passed
    assert "Operation not permitted" in done.reason


@linux
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True:\n    os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.setsid()",
        "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
    ],
)
def test_no_process_is_started_or_signalled(sandbox, code):
    done = run(sandbox, code)
    assert (done.passed, done.reason.split(":")[0]) == (False, "PermissionError")


def test_limits_cannot_be_raised(sandbox):
    done = run(sandbox, "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))")
    assert (done.passed, done.reason) == (False, "ValueError: not allowed to raise maximum limit")


@linux
def test_without_filters_of_calls_a_namespace_without_network_is_tried_and_the_rest_told():
    code = (
        "import json, socket\nfrom modularbase_core.evaluate import confined\nconfined.confine_calls = lambda: False\n"
        "limits = dict(cpu_seconds=1, memory_bytes=1 << 28, file_bytes=1024, open_files=64)\n"
        "held = confined.confine(limits)\n"
        "try:\n    socket.create_connection(('192.0.2.1', 9), timeout=0.2)\n"
        "except OSError as error:\n    fault = str(error)\n"
        "print(json.dumps([held, fault]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held, fault = json.loads(done.stdout)
    assert held["network"] in ("namespace", "")
    assert held["processes"] == ("limit" if os.getuid() else "")
    if held["network"]:
        assert "unreachable" in fault


def test_threads_and_event_loops_work(sandbox):
    code = (
        "import asyncio, threading\nout = []\nthread = threading.Thread(target=out.append, args=(1,))\n"
        "thread.start()\nthread.join()\nassert out == [1]\n"
        "async def f():\n    return await asyncio.to_thread(len, 'ab')\nassert asyncio.run(f()) == 2"
    )
    assert run(sandbox, code).reason == ""


def test_what_still_runs_at_the_end_is_ended(sandbox):
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    done = run(sandbox, code)
    assert done.passed
    assert done.seconds < 3


@linux
def test_all_is_held_here(sandbox):
    assert run(sandbox, "").held == {"files": "landlock", "network": "seccomp", "processes": "seccomp"}
    assert sandbox.unconfined() == []


def test_what_a_system_does_not_hold_is_told(sandbox, monkeypatch):
    held = run(sandbox, "")
    monkeypatch.setattr(sandbox, "run", lambda program: type(held)(True, "", 0.0, "", {"files": "landlock"}))
    assert sandbox.unconfined() == ["they may use the network", "they may start and signal processes"]


def test_several_run_at_once_and_come_in_order():
    programs = [
        Program(f"import time\ntime.sleep({0.2 if number == 0 else 0})\nprint({number})", "") for number in range(4)
    ]
    with Sandbox(LIMITS, workers=2) as sandbox:
        assert [done.output.strip() for done in sandbox.run_all(programs)] == ["0", "1", "2", "3"]


def test_closing_ends_what_runs():
    sandbox = Sandbox(Limits(seconds=30.0, cpu_seconds=30), workers=2)
    threading.Timer(0.5, sandbox.close).start()
    begun = time.monotonic()
    done = list(sandbox.run_all([Program("while True:\n    pass", "")] * 4))
    assert {one.reason for one in done} == {"called off"}
    assert time.monotonic() - begun < 5


def test_limits_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="cpu_seconds is 0; use at least 1"):
        Limits(cpu_seconds=0)


def test_a_program_that_ends_by_a_signal_is_named_for_it(sandbox):
    done = run(sandbox, "import ctypes\nctypes.string_at(0)")
    assert done.reason == f"crash: {signal.SIGSEGV.name}"
