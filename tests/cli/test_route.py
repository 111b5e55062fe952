"""`modularbase route` tells where messages go: one, what is piped in, or a file of them."""

import json
import subprocess
import sys

import pytest
from tiny_packs import catalog_of

from modularbase_core.packs.catalog import Catalog
from modularbase_core.turn.stages import Route, RoutedPack

PYTHON = Route(
    (RoutedPack("python_code", 1.0, 0.914, "over the threshold 0.5"),),
    {"general_chat": 0.02, "law": 0.3, "python_code": 0.914},
)
BOTH = Route((RoutedPack("python_code", 0.6, 0.9, "one"), RoutedPack("law", 0.4, 0.6, "two")), {})
NOBODY = Route(
    (RoutedPack("general_chat", 1.0, None, "no pack reached 0.5"),),
    {"law": 0.3},
    notes=("plugin 'x' failed",),
    abstained=True,
)


class FakeMessages:
    """Routes each message by its first word."""

    def __init__(self):
        self.asked, self.opened = [], []

    def open(self, config, catalog, progress=None, hooks=None):
        self.opened.append((config, catalog, hooks))
        progress("compiling", 1, 2)
        return self

    def route(self, text):
        self.asked.append(text)
        return {"python": PYTHON, "both": BOTH}.get(text.split()[0], NOBODY)


@pytest.fixture
def messages(monkeypatch):
    """What `route` gets instead of a compiled base and router."""
    fake = FakeMessages()
    monkeypatch.setattr("modularbase_core.host.messages.Messages", fake)
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: Catalog())
    return fake


def test_a_message_is_told_with_every_score_and_the_reason(run, messages):
    done = run("route", "python lists", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "* python_code   0.91  100%, over the threshold 0.5",
        "  law           0.30",
        "  general_chat  0.02",
    ]
    assert messages.asked == ["python lists"]


def test_abstention_and_notes_are_told(run, messages):
    assert run("route", "hello").out.splitlines() == [
        "* general_chat        100%, no pack reached 0.5",
        "  law           0.30",
        "note: plugin 'x' failed",
    ]


def test_several_packs_have_their_shares(run, messages):
    assert run("route", "both").out.splitlines() == ["* python_code  0.90  60%, one", "* law          0.60  40%, two"]


def test_only_a_terminal_sees_what_is_compiled(run, messages):
    assert run("route", "hello").err == ""


def test_a_piped_message_is_one_message(run, messages):
    done = run("route", "--quiet", stdin="python 列表\nand more\n".encode())
    assert done.code == 0
    assert messages.asked == ["python 列表\nand more\n"]


def test_json_holds_packs_scores_and_abstention(run, messages):
    value = json.loads(run("route", "hello 你好", "--json").out)
    assert value == {
        "text": "hello 你好",
        "packs": [{"id": "general_chat", "weight": 1.0, "score": None, "reason": "no pack reached 0.5"}],
        "scores": {"law": 0.3},
        "abstained": True,
        "notes": ["plugin 'x' failed"],
    }
    assert json.loads(run("route", "python", "--json").out)["abstained"] is False


LINES = '{"text": "python\\nlists", "domain": "python"}\n\n{"text": "both"}\n{"text": "你好"}'.encode()


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_lines_are_routed_one_by_one(run, messages, tmp_path, way):
    (tmp_path / "lines.jsonl").write_bytes(LINES)
    source = (str(tmp_path / "lines.jsonl"), b"") if way == "file" else ("-", LINES)
    done = run("route", "--quiet", "--jsonl", source[0], stdin=source[1])
    assert (done.code, done.err) == (0, "")
    assert done.out == "python_code\tpython lists\npython_code+law\tboth\ngeneral_chat\t你好\n"
    assert messages.asked == ["python\nlists", "both", "你好"]
    assert len(messages.opened) == 1


def test_lines_as_json_are_an_object_a_line(run, messages):
    lines = [json.loads(line) for line in run("route", "--json", "--jsonl", "-", stdin=LINES).out.splitlines()]
    assert [line["text"] for line in lines] == messages.asked
    assert [one["id"] for one in lines[1]["packs"]] == ["python_code", "law"]


def test_no_lines_are_no_output(run, messages):
    done = run("route", "--quiet", "--jsonl", "-", stdin=b"\n \n")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_settings_and_plugins_reach_the_router(run, messages, tmp_path):
    (tmp_path / "settings.toml").write_text("packs_per_turn = 3\n")
    cache = tmp_path / "cache"
    assert run("route", "hello", "--config", str(tmp_path / "settings.toml"), "--cache", str(cache)).code == 0
    ((config, catalog, hooks),) = messages.opened
    assert (config.packs_per_turn, config.cache_dir) == (3, cache)
    assert catalog == Catalog()
    assert "mean" in hooks.fusions()  # our own plugin is among them


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        ([""], b"", "the message is empty; write a question"),
        ([" \n"], b"", "the message is empty"),
        ([], b"", "standard input is empty"),
        ([], b"abc\xff", "standard input is not UTF-8 (byte 0xff at 3)"),
        (["abc\udcff"], b"", "the message is not UTF-8 (at character 3)"),
        (["a" * 300_000], b"", "the message has 300000 bytes, at most 262144 are taken"),
        ([], b"a" * 300_000, "standard input has more than 262144 bytes"),
        (["--jsonl", "absent.jsonl"], b"", "absent.jsonl cannot be read (No such file or directory)"),
        (["hi", "--config", "absent.toml"], b"", "absent.toml does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_loaded(run, messages, arguments, stdin, told):
    done = run("route", *arguments, stdin=stdin)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {told}")
    assert done.err.count("\n") == 1
    assert messages.opened == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "is not JSON ("),
        (b"\xff\xfe", "is not JSON (it is not UTF-8 at byte 0)"),
        (b"[" * 100_000, "is not JSON (it is nested too deeply)"),
        (b'{"text": "\\ud800"}', "is not JSON (a string holds half a surrogate pair)"),
        (b'["text"]', 'has no "text"; give an object with one a line'),
        (b"3", 'has no "text"'),
        (b'{"prompt": "hi"}', 'has no "text"'),
        (b'{"text": 3}', 'has no "text"'),
        (b'{"text": " "}', "is empty"),
        (b'{"text": "' + b"a" * 300_000 + b'"}', "has 300000 bytes, at most 262144 are taken"),
    ],
)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_bad_line_is_named_after_those_before_it(run, messages, tmp_path, line, told, way):
    content = b'{"text": "python"}\n\n' + line + b'\n{"text": "both"}\n'
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    source, name = (str(path), str(path)) if way == "file" else ("-", "standard input")
    done = run("route", "--quiet", "--jsonl", source, stdin=content)
    assert done.code == 1
    assert done.out == "python_code\tpython\n"
    assert done.err.startswith(f"error: {name}:3 {told}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hi", "--jsonl", "-"], "give a message or --jsonl, not both"),
        (["two", "words"], "unexpected extra argument"),
        (["--jsonl"], "requires an argument"),
        (["--jsonl", "."], "is a directory"),
    ],
)
def test_wrong_usage_exits_2(run, messages, arguments, told):
    done = run("route", *arguments)
    assert done.code == 2
    assert told in done.err
    assert messages.opened == []


@pytest.mark.parametrize("arguments", ["route", "route --jsonl -"])
def test_a_closed_standard_input_is_told_in_a_line(arguments):
    program = "import sys; from modularbase_core.cli import main; main(sys.argv[1:])"
    command = ["sh", "-c", f'exec "$0" -c "$1" {arguments} <&-', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input is closed; ")
    assert done.stderr.count("\n") == 1


def test_the_real_router_answers(run, tiny_packs, cache, monkeypatch):
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(tiny_packs))
    done = run("route", "--quiet", "--cache", str(cache), "--json", "--jsonl", "-", stdin=LINES)
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["scores"].keys() == {"general_chat", "python_code"}
        assert all(0 <= score <= 1 for score in line["scores"].values())
        assert sum(one["weight"] for one in line["packs"]) == pytest.approx(1)
    shown = run("route", "--quiet", "--cache", str(cache), "hello").out
    assert shown.startswith("* ")
