"""`chat` with a session, with files, and what it tells of its memory."""

import json

import pytest

from modularbase_core.cli.reading import PIECE_BYTES, check_text, pieces
from modularbase_core.errors import InputError
from modularbase_core.host.memory_report import MemoryReport, RecalledPage
from modularbase_core.text.template import Message

REPORT = MemoryReport(
    tokens=2000,
    hot_tokens=900,
    cold_tokens={"exact": 16, "int8": 1056, "int4": 0, "summary": 32},
    bytes_on_disk=1_840_000,
    limit_bytes=4 << 30,
    index_bytes=80_000,
    recalled=(RecalledPage(160, "user", "its words", "The pass key is 71"),),
)


def test_a_session_goes_on_with_what_was_said(run, host):
    host.held = [Message("user", "hi"), Message("assistant", "Hello")]
    host.report = REPORT
    done = run("chat", "again", "--session", "talk")
    assert host.resumed == ["talk"]
    assert host.asked == [[("user", "hi"), ("assistant", "Hello"), ("user", "again")]]
    assert "[talk: 2,000 tokens so far]" in done.err
    assert "so far" not in run("chat", "again", "--session", "talk", "--quiet").err


def test_a_new_session_begins_with_the_system_message(run, host):
    run("chat", "hi", "--session", "talk", "--system", "Be brief.")
    assert host.asked == [[("system", "Be brief."), ("user", "hi")]]


def test_a_session_that_has_begun_keeps_its_system_message(run, host):
    host.held = [Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Hello")]
    assert "left out" not in run("chat", "again", "--session", "talk", "--system", "Be brief.").err
    told = "note: session 'talk' has begun without this system message, which is left out"
    assert told in run("chat", "again", "--session", "talk", "--system", "Be kind.").err
    assert host.asked[-1][0] == ("system", "Be brief.")


def test_a_system_message_goes_before_a_file(run, host, tmp_path):
    (tmp_path / "one.txt").write_text("one", encoding="utf-8")
    run("chat", "hi", "--file", str(tmp_path / "one.txt"), "--system", "Be brief.")
    assert host.asked[0][0] == ("system", "Be brief.")


def test_files_are_read_before_the_first_question(run, host, tmp_path):
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(f"{name}: 你好\n" * 3, encoding="utf-8")
    done = run("chat", "hi", "--file", str(tmp_path / "one.txt"), "--file", str(tmp_path / "two.txt"))
    assert [name for name, _ in host.read_in] == ["one.txt", "two.txt"]
    assert "".join(host.read_in[0][1]) == "one.txt: 你好\n" * 3
    assert host.asked[0][-3:] == [("user", "[two.txt]"), ("assistant", "OK."), ("user", "hi")]
    assert "reading one.txt" in done.err


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "is empty; name a text"), (b" \n", "is empty"), (b"ab\xff", "is not UTF-8 (near byte 2); convert it")],
)
def test_a_file_that_is_no_text_is_refused_before_anything_is_read(run, host, tmp_path, content, told):
    (tmp_path / "book.txt").write_bytes(content)
    done = run("chat", "hi", "--file", str(tmp_path / "book.txt"))
    assert done.code == 1
    assert told in done.err
    assert not host.asked
    assert not host.read_in


def test_memory_tells_what_is_held_and_what_came_back(run, host):
    host.report = REPORT
    done = run("chat", stdin=b"hi\n/memory\n/pin\n", terminal=True)
    assert "cold     16 exact, 1,056 int8, 0 int4, 32 summarised" in done.out
    assert "token 160 (8%), user, found by its words" in done.out
    assert host.pinned == 1


def test_memory_before_anything_was_said_is_told(run, host):
    assert "error: nothing has been said yet" in run("chat", stdin=b"/memory\n", terminal=True).err


def test_memory_in_json_is_a_line(run, host):
    host.report = REPORT
    lines = run("chat", "--json", stdin=b"/memory\n", terminal=True).out.splitlines()
    assert json.loads(lines[0])["recalled"][0]["token"] == 160


def test_a_session_is_not_forgotten_by_new(run, host):
    done = run("chat", "--session", "talk", stdin=b"/new\n", terminal=True)
    assert "error: session 'talk' is kept; leave it, or `modularbase session delete` it" in done.err


def test_pieces_are_the_text_and_end_with_lines(tmp_path):
    text = "a line of words, 十个字的一行\n" * 6000 + "no end"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    told: list[int] = []
    parts = list(pieces(tmp_path / "book.txt", told.append))
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts[:-1])
    assert max(map(len, parts)) <= 2 * PIECE_BYTES
    assert told[0] == 0
    assert told[-1] == check_text(tmp_path / "book.txt") == len(text.encode())


def test_a_file_that_goes_away_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        check_text(tmp_path / "none.txt")
