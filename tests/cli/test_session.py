import json
import os
import subprocess
import sys

import pytest
from kept_sessions import IDS, SAID, held, keep, left, token_ids
from tiny_packs import catalog_of

from modularbase_core.cli.session.list import ago
from modularbase_core.config import EngineConfig
from modularbase_core.context.cold import ColdStore
from modularbase_core.packs.catalog import Catalog
from modularbase_core.text.template import Message


@pytest.fixture
def config(tmp_path, tiny_packs, monkeypatch):
    """The settings that commands read; the tiny packs are what is installed."""
    catalog = catalog_of(tiny_packs)
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog)
    config = EngineConfig(sessions_dir=tmp_path / "sessions", session_bytes=1 << 26)
    (tmp_path / "none.toml").write_text(f'sessions_dir = "{config.sessions_dir}"\nsession_bytes = {1 << 26}\n')
    return config


@pytest.fixture
def kept(config, tiny_packs):
    folder = config.sessions_dir / "garden"
    keep(folder, catalog_of(tiny_packs), IDS)
    return folder


def test_list_says_how_to_begin(run, config):
    done = run("session", "list")
    assert done.out == f"no session in {config.sessions_dir} yet; `modularbase chat --session NAME` begins one\n"
    assert run("session", "list", "--json").out == "[]\n"


def test_list_tells_each_session(run, config, kept, tiny_packs):
    keep(config.sessions_dir / "old", catalog_of(tiny_packs), IDS[:41])
    os.utime(config.sessions_dir / "old" / "data.mdb", (1000, 1000))
    first, second = run("session", "list").out.splitlines()
    assert first.split() == [
        "garden",
        f"{len(IDS)}",
        "tokens",
        *first.split()[3:5],
        "just",
        "now",
        "tiny-base",
        "1.0.0",
    ]
    assert " days ago " in second
    plain = json.loads(run("session", "list", "--json").out)
    assert [one["name"] for one in plain] == ["garden", "old"]
    assert plain[1]["used"] == "1970-01-01T00:16:40+00:00"
    assert plain[0]["base"]["version"] == "1.0.0"
    assert (plain[0]["in_use"], plain[0]["problem"]) == (False, None)


def test_list_tells_what_is_in_use_and_what_is_damaged(run, config, kept, tiny_packs):
    keep(config.sessions_dir / "broken", catalog_of(tiny_packs), IDS)
    with (config.sessions_dir / "broken" / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    with ColdStore.open(kept, limit_bytes=1 << 26):
        done = run("session", "list")
    assert done.code == 0
    *rows, problem = done.out.splitlines()
    assert sorted((row.split()[0], row.split()[1]) for row in rows) == [("broken", "damaged"), ("garden", "in")]
    assert "in use" in next(row for row in rows if row.startswith("garden"))
    assert problem.startswith("problem: session 'broken' is damaged on disk")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"), (864000, "10 days ago")],
)
def test_times_are_told_in_one_unit(seconds, told):
    assert ago(seconds) == told


def test_show_tells_the_messages_in_order(run, kept):
    done = run("session", "show", "garden", "--full")
    assert (done.code, done.err) == (0, "")
    told = [line for line in done.out.splitlines() if line.startswith(("user (token ", "assistant (token "))]
    assert [line.split()[0] for line in told] == [one.role for one in SAID]
    at = [done.out.index(one.content) for one in SAID]
    assert at == sorted(at)


def test_show_shortens_what_is_long(run, config, tiny_packs):
    keep(config.sessions_dir / "long", catalog_of(tiny_packs), token_ids([Message("user", "river \x1b[2J " * 200)]))
    short, whole = run("session", "show", "long").out, run("session", "show", "long", "--full").out
    assert "... (2,200 characters; --full shows them)" in short
    assert whole.count("river") == 200
    assert "\x1b" not in short + whole


def test_show_gives_places_as_json(run, kept):
    plain = json.loads(run("session", "show", "garden", "--json").out)
    assert plain["name"] == "garden"
    assert [(one["role"], one["text"]) for one in plain["messages"]] == [(one.role, one.content) for one in SAID]
    assert plain["messages"][0]["token"] == 2  # behind <|begin|> and <|user|>
    assert set(plain["messages"][0]) == {"role", "text", "token", "tokens", "whole"}


@pytest.mark.parametrize("name", ["out", "out.gz"])
def test_a_session_goes_out_and_comes_back(run, config, kept, tmp_path, name):
    before, file = held(kept), str(tmp_path / name)
    done = run("session", "export", "garden", file)
    assert done.code == 0
    assert done.out.startswith(f"exported garden ({len(IDS)} tokens, {len(before[0])} pages, ")
    assert done.err.startswith("exporting garden (")  # no bar where no terminal is
    assert run("session", "export", "garden", file).err == (
        f"error: {file} exists; name another file, or give --force to replace it\n"
    )
    assert run("session", "export", "garden", file, "--force", "--quiet").err == ""
    assert run("session", "delete", "garden", "--yes").out == "deleted garden\n"
    done = run("session", "import", file, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"imported garden ({len(IDS)} tokens, {len(before[0])} pages)\n"
    assert held(kept) == before
    done = run("session", "import", file)
    assert (done.code, done.out) == (1, "")
    assert "there is a session 'garden'" in done.err
    assert run("session", "import", file, "other").code == 0
    assert left(config) == ["garden", "other"]


def test_an_import_without_its_base_says_what_is_missing(run, kept, tmp_path, monkeypatch):
    run("session", "export", "garden", str(tmp_path / "out"))
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: Catalog())
    done = run("session", "import", str(tmp_path / "out"), "other", "--quiet")
    assert done.code == 0
    assert "held with the base tiny-base 1.0.0, which is not installed" in done.err


def test_an_import_that_is_refused_leaves_nothing(run, config, tmp_path):
    (tmp_path / "out").write_bytes(b"hello\n")
    done = run("session", "import", str(tmp_path / "out"))
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith(f"error: {tmp_path / 'out'} cannot be imported: ")
    assert left(config) == []


def test_delete_asks(run, config, kept):
    done = run("session", "delete", "garden", terminal=True, stdin=b"n\n")
    assert done.code == 130
    assert f"Delete garden ({len(IDS)} tokens, " in done.err
    assert left(config) == ["garden"]
    done = run("session", "delete", "garden")
    assert (done.code, done.err) == (
        1,
        "error: nobody is there to be asked; give --yes to delete without a question\n",
    )
    assert run("session", "delete", "garden", terminal=True, stdin=b"y\n").code == 0
    assert left(config) == []


def test_a_session_in_use_is_refused_with_one_line(run, config, kept, tmp_path):
    with ColdStore.open(kept, limit_bytes=1 << 26):
        for words in (
            ["session", "delete", "garden"],
            ["session", "delete", "garden", "--yes"],
            ["session", "show", "garden"],
            ["session", "export", "garden", str(tmp_path / "out")],
            ["memory", "garden"],
        ):
            done = run(*words)
            assert (done.code, done.out) == (1, "")
            assert "error: session 'garden' is open in this process" in done.err
    assert left(config) == ["garden"]


@pytest.mark.parametrize("command", ["show", "delete"])
@pytest.mark.parametrize("name", ["../garden", "a/b", ".", "", ".git"])
def test_what_cannot_be_a_name_is_refused(run, kept, command, name):
    done = run("session", command, name)
    assert (done.code, done.out) == (1, "")
    assert f"error: a session cannot be called {name!r}" in done.err


def test_an_unknown_name_or_command_is_answered_with_the_nearest(run, kept):
    assert "no session 'gardn' in" in run("session", "show", "gardn").err
    assert "(did you mean 'garden'?)" in run("memory", "gardn").err
    assert "(did you mean 'export'?)" in run("session", "exprt").err


def test_the_commands_are_listed_without_anything_heavy():
    program = (
        "import sys\nfrom modularbase_core.cli import main\n"
        "for words in (['session', '--help'], ['memory', '--help'], ['--help']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "print([name for name in ('numpy', 'torch', 'tvm', 'lmdb', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for line in ("  delete  ", "  export  ", "  import  ", "  list  ", "  show  ", "  memory  ", "  session  "):
        assert line in done.stdout
