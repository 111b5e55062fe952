import json
from dataclasses import replace

import pytest
from kept_sessions import IDS, keep
from tiny_packs import catalog_of

from modularbase_core.cli.memory import tell_memory
from modularbase_core.host.memory_report import MemoryReport, RecalledPage

REPORT = MemoryReport(
    tokens=100_000,
    hot_tokens=1024,
    cold_tokens={"exact": 32, "int8": 98_000, "int4": 0, "summary": 1_968},
    bytes_on_disk=50_000_000,
    limit_bytes=4 << 30,
    index_bytes=3_000_000,
    shared_tokens=512,
    recalled=(
        RecalledPage(25_008, "user", "its words", " gate's password\nis heron-42 \x1b[2J"),
        RecalledPage(60_000, "", "attention", "the river"),
    ),
)


def test_a_report_is_told_in_lines(capsys):
    tell_memory(REPORT, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "tokens   100,000",
        "hot      1,024",
        "cold     32 exact, 98,000 int8, 0 int4, 1,968 summarised",
        "on disk  50.0 MB, 1.2% of 4.29 GB, 500 bytes a token",
        "shared   512, which an earlier conversation began with too",
        "index    3.0 MB of memory",
        "brought back for the last answer:",
        "  token 25,008 (25%), user, found by its words",
        "    gate's password is heron-42 \ufffd[2J",
        "  token 60,000 (60%), found by attention",
        "    the river",
    ]


def test_a_report_is_one_line_of_json_in_a_conversation(capsys):
    tell_memory(REPORT, as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    plain = json.loads(line)
    assert plain["cold_tokens"] == {"exact": 32, "int8": 98_000, "int4": 0, "summary": 1_968}
    assert plain["bytes_per_token"] == 500.0
    assert plain["shared_tokens"] == 512
    assert plain["recalled"][0]["position"] == 0.2501
    assert set(plain["recalled"][0]) == {"token", "role", "by", "text", "position"}


def test_a_conversation_that_holds_nothing_is_told_too(capsys):
    nothing = replace(REPORT, tokens=0, hot_tokens=0, cold_tokens={}, bytes_on_disk=0, index_bytes=0, recalled=())
    tell_memory(replace(nothing, shared_tokens=0), as_json=False)
    told = capsys.readouterr().out
    assert "0 bytes a token" in told
    assert "shared" not in told


@pytest.fixture
def kept(tmp_path, tiny_packs, monkeypatch):
    catalog = catalog_of(tiny_packs)
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog)
    (tmp_path / "none.toml").write_text(f'sessions_dir = "{tmp_path}"\nsession_bytes = {1 << 26}\n')
    keep(tmp_path / "garden", catalog, IDS)


def test_memory_tells_of_a_session_on_disk(run, kept):
    done = run("memory", "garden")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"tokens   {len(IDS)}"
    assert "brought back for the last answer:" in lines
    assert "  token 0 (0%), user, found by its words" in lines
    assert "password" in done.out


def test_memory_gives_json(run, kept):
    plain = json.loads(run("memory", "garden", "--json").out)
    assert plain["tokens"] - 1 == sum(plain["cold_tokens"].values()) == len(IDS) - 1
    assert plain["limit_bytes"] == 1 << 26
    assert plain["index_bytes"] == 0
    assert [(one["token"], one["by"]) for one in plain["recalled"]] == [(0, "its words"), (32, "attention")]


def test_memory_of_a_session_that_is_not_there_is_one_line(run, kept):
    done = run("memory", "pond")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: there is no session 'pond'")
