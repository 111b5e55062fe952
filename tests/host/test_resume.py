"""Conversations that outlive their process: resumed without being computed again, also after a crash."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_packs import BASE, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import ConfigError, InputError, SessionError, SessionInUse
from modularbase_core.host import Host, build
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Token

GREEDY = SamplingConfig(temperature=0, max_tokens=12)
Open = Callable[[], Host]


@pytest.fixture
def config(cache: Path, tmp_path: Path) -> EngineConfig:
    return EngineConfig(cache_dir=cache, sessions_dir=tmp_path / "sessions", hot_tokens=2048)


@pytest.fixture
def opened(tiny_packs: dict[str, Path], config: EngineConfig) -> Iterator[Open]:
    """Open a model, as a new process would; all are closed at the end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(build(config, catalog=catalog_of(tiny_packs)))


def say(host: Host, messages: list[Message], text: str) -> tuple[list[Message], Finished]:
    asked = [*messages, Message("user", text)]
    events = list(host.chat(asked, GREEDY, packs=["chat"]))
    said = "".join(event.text for event in events if isinstance(event, (Token, Finished)))
    assert isinstance(events[-1], Finished)
    return [*asked, Message("assistant", said)], events[-1]


def test_a_session_goes_on_where_it_was_without_being_read_again(opened: Open) -> None:
    host = opened()
    messages = host.resume("talk")
    assert messages == []
    for turn in range(8):
        messages, _ = say(host, messages, f"turn {turn}: tell me more about page {turn * 111}")
    tokens = host.memory().tokens
    host.close()
    again = opened()
    assert again.resume("talk") == messages
    assert again.memory().tokens == tokens
    _, finished = say(again, messages, "and then?")
    assert finished.prompt_tokens < 20


def test_what_is_said_after_a_restart_is_what_would_have_been_said(opened: Open, config: EngineConfig) -> None:
    host = opened()
    messages = host.resume("talk")
    messages, _ = say(host, messages, "hello 42, this is short")  # short enough to be kept exactly
    host.close()
    restarted = opened()
    resumed, _ = say(restarted, restarted.resume("talk"), "and then?")
    restarted.close()
    calm = opened()
    unbroken, _ = say(calm, [], "hello 42, this is short")
    unbroken, _ = say(calm, unbroken, "and then?")
    assert resumed == unbroken


def test_a_book_is_read_and_asked_about_later(opened: Open) -> None:
    host = opened()
    host.resume("book")
    read = []
    host.read(["word " * 300, "another " * 400, "end\n"], "book.txt", read.append)
    assert read == sorted(read)
    assert read[-1] > 600
    host.close()
    again = opened()
    messages = again.resume("book")
    assert [message.role for message in messages] == ["user", "assistant"]
    assert messages[0].content == "word " * 300 + "another " * 400 + "end\n"
    _, finished = say(again, messages, "what was it about?")
    assert finished.reason in ("stop", "length")


@pytest.mark.parametrize("back", [0, 1, 2])
def test_a_page_damaged_in_the_hot_window_is_told_and_the_session_goes_on(
    opened: Open, config: EngineConfig, back: int
) -> None:
    host = opened()
    host.resume("book")
    host.read(["word after word, " * 120], "book.txt")
    host.close()
    with ColdStore.open(config.sessions_dir / "book", limit_bytes=1 << 30) as store:
        last = max(entry.index for entry in store.entries() if (entry.tokens >= 0).all())
        with store._db.env.begin(write=True) as txn:
            key = (last - back).to_bytes(8, "big")
            payload = bytearray(txn.get(key, db=store._db.payloads))
            payload[100] ^= 1
            txn.put(key, bytes(payload), db=store._db.payloads)
    again = opened()
    asked = [*again.resume("book"), Message("user", "what was it about?")]
    events = list(again.chat(asked, GREEDY, packs=["chat"]))
    assert [note for note in (*events[0].notes, *events[-1].notes) if "damaged" in note]
    said = "".join(event.text for event in events if isinstance(event, (Token, Finished)))
    messages = [*asked, Message("assistant", said)]
    for turn in range(6):  # past the block's end, where what leaves is searched and kept
        messages, finished = say(again, messages, f"turn {turn}: tell me more about page {turn * 111}, please do")
    assert finished.generated_tokens > 0


def test_a_system_message_stands_before_a_book(opened: Open) -> None:
    host, system = opened(), Message("system", "Be brief.")
    host.resume("book")
    told = host.read(["word " * 30], "book.txt", system=system)
    assert [message.role for message in told] == ["system", "user", "assistant"]
    host.close()
    assert opened().resume("book")[0] == system


def test_a_book_whose_reading_was_broken_off_can_be_asked_about(opened: Open) -> None:
    host = opened()
    host.resume("book")

    def some() -> Iterator[str]:
        yield "word " * 300
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.read(some(), "book.txt")
    host.close()
    again = opened()
    messages = again.resume("book")
    assert messages[0].content.startswith("word word")
    messages, _ = say(again, messages, "what was it about?")
    again.close()
    told = opened().resume("book")
    assert [message.role for message in told] == ["user", "assistant", "user", "assistant"]
    assert told[2].content == "what was it about?"


def test_a_session_is_opened_once(opened: Open) -> None:
    opened().resume("talk")
    with pytest.raises(SessionInUse, match="session 'talk' is open in"):
        opened().resume("talk")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(opened: Open, name: str) -> None:
    with pytest.raises(InputError, match="a session cannot be called"):
        opened().resume(name)


def test_a_session_is_taken_up_by_the_base_that_it_was_held_with(
    opened: Open, tiny_packs: dict[str, Path], config: EngineConfig, tmp_path: Path
) -> None:
    host = opened()
    say(host, host.resume("talk"), "hello")
    host.close()
    other = write_pack(tmp_path / "other", replace(manifest("tiny-base", "base", BASE), version="1.0.1"), 9)
    told = r"was held with the base tiny-base 1\.0\.0, but tiny-base 1\.0\.1 is installed"
    with (
        build(config, catalog=catalog_of({**tiny_packs, "tiny-base": other})) as changed,
        pytest.raises(SessionError, match=told),
    ):
        changed.resume("talk")
    assert opened().resume("talk")


def test_other_messages_do_not_overwrite_a_session(opened: Open) -> None:
    host = opened()
    say(host, host.resume("talk"), "hello")
    with pytest.raises(InputError, match="do not continue session 'talk'"):
        say(host, [], "something else")


def test_nothing_is_left_of_a_conversation_without_a_name(opened: Open, config: EngineConfig) -> None:
    host, folder = opened(), config.cache_dir / "conversations"
    before = set(folder.glob("*"))
    host.read(["word " * 900], "book.txt")
    assert len(set(folder.iterdir()) - before) == 1
    host.close()
    assert not set(folder.iterdir()) - before


def test_what_a_killed_process_left_is_swept_away(opened: Open, config: EngineConfig) -> None:
    folder = config.cache_dir / "conversations"
    with ColdStore.open(folder / "spill-old", limit_bytes=1 << 20):
        pass
    host = opened()
    host.read(["word " * 900], "book.txt")
    assert not (folder / "spill-old").exists()


def test_a_cold_store_that_nobody_offers_is_told(config: EngineConfig, tiny_packs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"cold_store is 'lmbd', which is not there \(did you mean 'lmdb'\?\)"):
        build(replace(config, cold_store="lmbd"), catalog=catalog_of(tiny_packs))


CHILD = """
import sys
from pathlib import Path
from tiny_packs import catalog_of
from modularbase_core.config import EngineConfig
from modularbase_core.host import build
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
packs, cache, sessions = map(Path, sys.argv[1:4])
found = {path.name: path for path in packs.iterdir() if path.is_dir()}
config = EngineConfig(cache_dir=cache, sessions_dir=sessions, hot_tokens=2048)
with build(config, catalog=catalog_of(found)) as host:
    messages = host.resume("talk")
    for turn in range(60):
        messages.append(Message("user", f"turn {turn}: tell me more about page {turn * 111}"))
        events = list(host.chat(messages, SamplingConfig(temperature=0, max_tokens=12), packs=["chat"]))
        messages.append(Message("assistant", "".join(getattr(event, "text", "") for event in events)))
        print(host.memory().tokens, flush=True)
"""


def _kill_and_open(opened_by: Open, arguments: list[str], sessions: Path, delay: float, whole: list[int]) -> int:
    """Kill a conversation after its first answer and `delay`; return its tokens, all of them as they were said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments, str(sessions)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        told = int(child.stdout.readline())
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
    told = max([told, *(int(line) for line in rest[:-1])])
    with ColdStore.open(sessions / "talk", limit_bytes=1 << 30) as store:
        entries = list(store.entries())
        assert not store.take_faults()
    token_ids = [int(one) for entry in entries for one in entry.tokens if one >= 0]
    assert [entry.index for entry in entries] == list(range(len(entries)))
    assert token_ids == whole[: len(token_ids)]
    assert len(token_ids) >= told - 1 - 16  # the last told token is not read yet; the last page may not be there
    return len(token_ids)


@pytest.fixture
def whole(tiny_packs: dict[str, Path], cache: Path, tmp_path: Path) -> list[int]:
    """The tokens of the conversation when nobody kills it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    packs = next(iter(tiny_packs.values())).parent
    arguments = [sys.executable, "-c", CHILD, str(packs), str(cache), str(tmp_path / "whole")]
    subprocess.run(arguments, check=True, env=environment, stdout=subprocess.DEVNULL)
    with ColdStore.open(tmp_path / "whole/talk", limit_bytes=1 << 30) as store:
        return [int(one) for entry in store.entries() for one in entry.tokens if one >= 0]


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_conversation_is_there_up_to_its_last_page(
    opened: Open, tiny_packs: dict[str, Path], cache: Path, config: EngineConfig, whole: list[int], kills: int
) -> None:
    random_ = random.Random(kills)
    packs = next(iter(tiny_packs.values())).parent
    for number in range(kills):
        sessions = config.sessions_dir / f"{number}"
        _kill_and_open(opened, [str(packs), str(cache)], sessions, 0.4 * random_.random(), whole)
    with build(replace(config, sessions_dir=sessions), catalog=catalog_of(tiny_packs)) as host:
        messages = host.resume("talk")
        messages, finished = say(host, messages, "and then?")
        assert finished.generated_tokens > 0
