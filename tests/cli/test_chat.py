import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from tiny_packs import PACK, manifest

from modularbase_core import cli
from modularbase_core.errors import BudgetError
from modularbase_core.packs.catalog import BrokenPlugin, InstalledPack
from modularbase_core.sdk import Pack
from modularbase_core.turn.stages import Routed, RoutedPack


def test_a_question_is_answered_once(run, host):
    done = run("chat", "hi", "--quiet")
    assert (done.code, done.out, done.err) == (0, "Hello, 世界!\n", "")
    assert host.asked == [[("user", "hi")]]
    assert host.closed == 1


def test_the_packs_that_answer_are_shown_beside_the_answer(run, host):
    done = run("chat", "hi")
    assert "[python_code 75% + general_chat 25%]" in done.err
    assert done.out == "Hello, 世界!\n"


def test_what_was_mended_on_the_way_is_told(run, host):
    host.script = [Routed((), {}, ("pack 'x' cannot be loaded; general_chat answers",)), "ok"]
    assert "note: pack 'x' cannot be loaded; general_chat answers" in run("chat", "hi").err


def test_that_a_named_pack_was_replaced_is_told_however_quiet(run, host):
    note = "pack 'python_code' cannot be loaded; general_chat answers"
    host.script = [Routed((RoutedPack("general_chat", 1.0, None),), {}, (note,)), "ok"]
    assert run("chat", "hi", "--pack", "python", "--quiet").err == f"note: {note}\n"
    assert run("chat", "hi", "--quiet").err == ""  # who named none asked for none


def test_what_went_wrong_while_the_answer_came_is_told_after_it(run, host):
    host.notes = ("plugin 'x' failed in modularbase_turn_finished (OSError: disk full); it is left out",)
    assert run("chat", "hi").err.endswith(f"note: {host.notes[0]}\n")
    assert json.loads(run("chat", "hi", "--json").out)["notes"] == list(host.notes)
    assert run("chat", "hi", "--quiet").err == ""


def test_broken_and_refused_packs_are_told_at_the_start(run, host):
    foreign = manifest("foreign", "domain", PACK, base="other-base")
    host.catalog = replace(
        host.catalog,
        packs=(*host.catalog.packs, InstalledPack(Pack(Path("foreign")), foreign, "modularbase-foreign")),
        broken=(BrokenPlugin("bad", "modularbase-bad", "ImportError: no\nmodule"),),
    )
    notes = [line for line in run("chat", "hi").err.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: bad of modularbase-bad is broken: ImportError: no module"
    assert notes[1].startswith("note: pack 'foreign' was made for base 'other-base'")
    assert run("chat", "hi", "--quiet").err == ""


def test_a_piped_question_is_answered(run, host):
    done = run("chat", "--quiet", stdin="你好\n".encode())
    assert done.out == "Hello, 世界!\n"
    assert host.asked == [[("user", "你好\n")]]


def test_json_holds_text_packs_and_usage(run, host):
    done = run("chat", "hi", "--json")
    value = json.loads(done.out)
    assert value == {
        "text": "Hello, 世界!",
        "packs": [
            {"id": "python_code", "weight": 0.75, "score": 0.9, "reason": ""},
            {"id": "general_chat", "weight": 0.25, "score": 0.3, "reason": ""},
        ],
        "scores": {"python_code": 0.9},
        "notes": [],
        "finish_reason": "stop",
        "stop": None,
        "prompt_tokens": 12,
        "shared_tokens": 0,
        "generated_tokens": 2,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    }


def test_json_holds_logprobs_when_asked(run, host):
    tokens = json.loads(run("chat", "hi", "--json", "--logprobs", "1").out)["tokens"]
    assert tokens[0] == {"text": "Hello", "id": 7, "logprob": -0.5, "top": [{"id": 7, "text": "<7>", "logprob": -0.5}]}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--logprobs", "1"], "--logprobs needs --json"), (["--json", "--logprobs", "101"], "0<=x<=100")],
)
def test_logprobs_that_cannot_be_shown_are_wrong_usage(run, host, arguments, told):
    done = run("chat", "hi", *arguments)
    assert done.code == 2
    assert told in done.err
    assert host.asked == []


def test_a_conversation_in_json_prints_json_alone(run, host):
    done = run("chat", "--json", stdin=b"/packs\n/help\nhi\n", terminal=True)
    packs, answer = map(json.loads, done.out.splitlines())
    python = {"id": "python_code", "version": "1.0.0", "type": "domain", "name": "Python_Code"}
    assert packs["packs"][1] == {**python, "score": None, "reason": None}
    assert answer["text"] == "Hello, 世界!"
    assert done.err.count("> ") == 4


def test_the_prompt_is_kept_out_of_a_file(run, host):
    assert run("chat", stdin=b"hi\n", terminal=True).out == "Hello, 世界!\n"


def test_every_sampling_flag_reaches_the_host(run, host):
    flags = "--max-tokens 5 --temperature 0 --top-k 3 --top-p 0.5 --min-p 0.1 --repetition-penalty 1.5 "
    flags += "--presence-penalty 0.5 --frequency-penalty -0.5 --seed 4 --stop END --stop ###"
    assert run("chat", "hi", *flags.split()).code == 0
    sampling = host.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (5, 0, 3, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.5, 4)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.stop == ("END", "###")


def test_packs_are_named_by_id_or_alias(run, host):
    run("chat", "hi", "--pack", "python,general_chat", "-p", "python_code")
    assert host.packs == ["python_code", "general_chat", "python_code"]
    run("chat", "hi")
    assert host.packs is None


def test_a_system_message_goes_first(run, host):
    run("chat", "hi", "--system", "Be brief.")
    assert host.asked == [[("system", "Be brief."), ("user", "hi")]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        (["chat", ""], b"", "error: the question is empty; write a question\n"),
        (["chat", "  \n"], b"", "error: the question is empty"),
        (["chat"], b" \n", "error: standard input is empty"),
        (["chat"], b"abc\xff", "error: standard input is not UTF-8 (byte 0xff at 3); convert it with iconv\n"),
        (["chat", "abc\udcff"], b"", "error: the question is not UTF-8 (at character 3)"),
        (["chat"], b"a" * 1_000_000, "error: standard input has more than 262144 bytes, at most 262144 are taken"),
        (["chat", "a" * 1_000_000], b"", "error: the question has 1000000 bytes, at most 262144 are taken"),
        (["chat", "hi", "--system", " "], b"", "error: the system message is empty"),
        (["chat", "hi", "--pack", "pyton"], b"", "error: no pack 'pyton' is installed (did you mean 'python'?)"),
        (["chat", "hi", "--top-p", "2"], b"", "error: top_p is 2.0; use a number from 0 to 1"),
        (["chat", "hi", "--config", "absent.toml"], b"", "error: absent.toml does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_fails(run, host, arguments, stdin, told):
    done = run(*arguments, stdin=stdin)
    assert done.code == 1
    assert done.err.removeprefix("compiling (1/2)\n").startswith(told)
    assert done.err.count("\n") == 1 + ("compiling" in done.err)
    assert done.out == ""
    assert host.asked == []


def test_an_error_of_ours_is_one_line_after_what_was_said(run, host):
    host.script = ["Hel", BudgetError("no room; free some")]
    done = run("chat", "hi", "--quiet")
    assert (done.code, done.out, done.err) == (1, "Hel\n", "error: no room; free some\n")


def test_a_bug_keeps_its_traceback(monkeypatch, host):
    host.script = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["chat", "hi"])


def test_ctrl_c_ends_the_line_and_exits_130(run, host):
    host.script = ["Hel", KeyboardInterrupt()]
    done = run("chat", "hi", "--quiet")
    assert (done.code, done.out) == (130, "Hel\n")
    assert "Traceback" not in done.err
    assert host.closed == 1


def test_wrong_usage_exits_2(run):
    assert run("chat", "hi", "--temprature", "1").code == 2
    assert run("chat", "--max-tokens", "many").code == 2


def test_a_conversation_keeps_its_history(run, host):
    done = run("chat", stdin=b"hi\nagain\n/quit\n", terminal=True)
    assert done.code == 0
    first = "Hello, 世界!"
    assert host.asked == [[("user", "hi")], [("user", "hi"), ("assistant", first), ("user", "again")]]
    assert done.out.count(first) == 2


def test_new_forgets_all_but_the_system_message(run, host):
    run("chat", "--system", "Be brief.", stdin=b"hi\n/new\nagain\n", terminal=True)
    assert host.asked[1] == [("system", "Be brief."), ("user", "again")]


def test_help_packs_and_unknown_commands(run, host):
    done = run("chat", stdin=b"/help\n/packs\n/pakcs\n\n/usr/bin is what?\n", terminal=True)
    assert "/new     forget the conversation" in done.out
    assert "python_code   1.0.0  domain      Python_Code\n" in done.out
    assert "tiny-base" not in done.out
    assert "error: there is no command /pakcs (did you mean '/packs'?)" in done.err
    assert host.asked == [[("user", "/usr/bin is what?")]]
    assert done.code == 0


LAST = Routed(
    (RoutedPack("python_code", 1.0, 0.914, "over the threshold 0.5"),), {"general_chat": 0.25, "python_code": 0.914}
)


def test_packs_tells_the_scores_of_the_last_message_and_why_those_that_answered_did(run, host):
    host.script = ["hi", LAST]
    done = run("chat", stdin=b"hi\n/packs\n", terminal=True)
    assert done.out.splitlines()[1:] == [
        "python_code   1.0.0  domain  0.91  over the threshold 0.5  Python_Code",
        "general_chat  1.0.0  system  0.25                          General_Chat",
    ]


def test_packs_shows_who_answered_first_though_others_score_more(run, host):
    host.script = [Routed((RoutedPack("general_chat", 1.0, None, "forced"),), {"python_code": 0.9}), "hi"]
    done = run("chat", stdin=b"hi\n/packs\n", terminal=True)
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["general_chat", "1.0.0", "system", "forced", "General_Chat"],
        ["python_code", "1.0.0", "domain", "0.90", "Python_Code"],
    ]


def test_packs_as_json_tells_scores_and_reasons(run, host):
    host.script = ["hi", LAST]
    done = run("chat", "--json", stdin=b"hi\n/packs\n", terminal=True)
    told = {one["id"]: (one["score"], one["reason"]) for one in json.loads(done.out.splitlines()[1])["packs"]}
    assert told == {"general_chat": (0.25, None), "python_code": (0.914, "over the threshold 0.5")}


def test_packs_of_a_new_conversation_tells_no_scores_of_the_old_one(run, host):
    host.script = ["hi", LAST]
    done = run("chat", stdin=b"hi\n/new\n/packs\n", terminal=True)
    assert "0.91" not in done.out


def test_an_error_does_not_end_a_conversation_and_leaves_no_trace(run, host):
    host.script = ["Hel", BudgetError("no room")]
    done = run("chat", stdin=b"hi\nagain\n", terminal=True)
    assert done.err.count("error: no room") == 2
    assert host.asked == [[("user", "hi")], [("user", "again")]]


def test_ctrl_c_in_a_conversation_ends_the_answer_alone(run, host):
    host.script = ["Hel", KeyboardInterrupt()]
    run("chat", stdin=b"hi\nagain\n", terminal=True)
    assert host.asked[1] == [("user", "hi"), ("assistant", "Hel"), ("user", "again")]


def test_ctrl_c_at_the_prompt_asks_again_and_tells_once_how_to_leave(run, host, monkeypatch):
    lines = iter([KeyboardInterrupt(), KeyboardInterrupt(), "hi", EOFError()])

    def typed(prompt=""):
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    done = run("chat", terminal=True)
    assert done.code == 0
    assert host.asked == [[("user", "hi")]]
    assert done.err.count("Ctrl-D or /quit leaves") == 1


def test_a_line_that_is_not_utf8_does_not_end_a_conversation(run, host):
    done = run("chat", stdin=b"\xff\xfe\nhi\n", terminal=True)
    assert "not UTF-8" in done.err
    assert done.code == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "redirection", "told"),
    [
        ("--version", ">/dev/full", "error: standard output cannot be written (No space left on device)"),
        ("--help", ">/dev/full", "error: standard output cannot be written (No space left on device)"),
        ("--version", ">&-", "error: standard output cannot be written (it is closed)"),
        ("chat", "<&-", "error: standard input is closed; write a question"),
    ],
)
def test_a_stream_that_does_not_work_is_told_in_a_line(arguments, redirection, told, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    program = "import sys; from modularbase_core.cli import main; main(sys.argv[1:])"
    command = ["sh", "-c", f'exec "$0" -c "$1" {arguments} {redirection}', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, told + "\n")


def test_a_failure_that_is_not_of_standard_output_keeps_its_traceback(host):
    host.script = [OSError("a bug")]
    with pytest.raises(OSError, match="a bug"):
        cli.main(["chat", "hi"])


PROGRAM = """
import sys, time
from types import SimpleNamespace
sys.path[:0] = {path!r}
from conftest import FakeHost
from modularbase_core.turn.stages import Token

class Slow(FakeHost):
    def _answer(self):
        while True:
            yield Token("word ", 1, None)
            time.sleep(0.02)

module = SimpleNamespace(build=lambda config, **more: Slow())
sys.modules["modularbase_core.host"] = module
import modularbase_core
modularbase_core.host = module
from modularbase_core.cli import main
main()
"""


@pytest.fixture
def slow_chat(tmp_path):
    """A process that answers for ever."""
    here = Path(__file__).parent
    (tmp_path / "slow.py").write_text(dedent(PROGRAM).format(path=[str(here), str(here.parent)]))
    processes = []

    def start():
        command = [sys.executable, str(tmp_path / "slow.py"), "chat", "hi"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_real_interrupt_leaves_a_clean_line(slow_chat):
    process = slow_chat()
    assert process.stdout.read(10) == "word word "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.endswith("\n")
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error_to_talk_of(slow_chat):
    process = slow_chat()
    process.stdout.read(10)
    process.stdout.close()
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 1
    err = process.stderr.read()
    assert "Traceback" not in err
    assert "rror" not in err
