"""The cold store against kill -9 and flipped bits: never a wrong page, never the end of the process."""

import json
import random
import time
from pathlib import Path

import lmdb
import pytest
from cold_pages import flip, in_a_child, opened, page, payload_of, written

WRITE_ON = """
with opened(Path(sys.argv[1]), 1024) as store:
    first = len(store)
    for index in range(first, first + 4000, 4):
        older = [page(old, index) for old in range(index // 2, index // 2 + 2)]
        store.put([*older, *(page(new) for new in range(index, index + 4))], {"count": str(index + 4).encode()})
        os.write(1, f"{index + 4}\\n".encode())
"""


def kill_and_look(directory: Path, kills: int) -> None:
    chance = random.Random(5)
    count = 0
    for _ in range(kills):
        child = in_a_child(WRITE_ON, directory)
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(chance.choice((0, 1, 5, 20)))]
        time.sleep(chance.random() * 0.01)
        child.kill()
        told += child.stdout.read().splitlines()  # `communicate` would lose what was read ahead
        child.communicate()
        told_count = max([int(line) for line in told if line.strip()], default=count)
        with opened(directory, 1024) as store:
            count = int(store.meta("count") or 0)
            assert told_count <= count <= told_count + 4
            assert [entry.index for entry in store.entries()] == [*range(count)]
            versions = {}
            for index in range(count):
                record = store.page(index)
                assert record is not None
                versions[index] = int(record.payload.split(b";")[0].split(b".")[1])
                assert record.payload == payload_of(index, versions[index])
            # the rewritten ones are as of the last write, and none of a later one
            for index in range(4, count, 4):
                assert {versions[old] for old in (index // 2, index // 2 + 1)} == {index}
            assert store.take_faults() == []


def test_after_a_kill_the_store_holds_what_was_flushed(tmp_path: Path) -> None:
    kill_and_look(tmp_path / "talk", 20)


@pytest.mark.slow
def test_after_many_kills_the_store_holds_what_was_flushed(tmp_path: Path) -> None:
    kill_and_look(tmp_path / "talk", 200)


@pytest.mark.parametrize("place", [0, 1, 4000, 8191])
def test_a_flipped_bit_of_a_payload_costs_its_page_alone_and_is_told_once(tmp_path: Path, place: int) -> None:
    written(tmp_path, 12)
    at = (tmp_path / "data.mdb").read_bytes().index(payload_of(7))
    flip(tmp_path, at + place)
    with opened(tmp_path) as store:
        assert [store.page(index) is not None for index in range(12)] == [index != 7 for index in range(12)]
        assert store.page(7) is None
        fault = f"session {tmp_path.name!r}: page 7 (tokens 112 to 127) is damaged on disk and is dropped"
        assert (store.take_faults(), store.take_faults()) == ([fault], [])
        assert 7 not in store
        assert 7 not in [entry.index for entry in store.entries()]
    with opened(tmp_path) as store:
        assert (store.page(7), store.take_faults()) == (None, [])
        store.put([page(7, 1)])
        assert store.page(7).payload == payload_of(7, 1)


def test_a_damaged_page_can_be_written_anew_at_once(tmp_path: Path) -> None:
    written(tmp_path, 3)
    flip(tmp_path, (tmp_path / "data.mdb").read_bytes().index(payload_of(1)) + 50)
    with opened(tmp_path) as store:
        assert store.page(1) is None
        store.put([page(1, 2)])
        store.put([page(2, 2)])
        assert (store.page(1).payload, store.page(2).payload, len(store)) == (payload_of(1, 2), payload_of(2, 2), 3)


def test_a_flipped_bit_of_a_row_costs_its_page_alone_and_its_payload_is_freed(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put([page(index, bounds=f"the row of {index}".encode()) for index in range(8)], {"state": b"our state"})
    used = (tmp_path / "data.mdb").read_bytes()
    flip(tmp_path, used.rindex(b"the row of 5") + 2)
    flip(tmp_path, used.rindex(b"our state"))
    with opened(tmp_path) as store:
        assert 5 not in store
        assert [entry.index for entry in store.entries()] == [0, 1, 2, 3, 4, 6, 7]
        assert (store.page(5), store.meta("state")) == (None, None)
        assert [fault.split(": ")[1] for fault in store.take_faults()] == [
            "page 5 (tokens 80 to 95) is damaged on disk and is dropped",
            "its 'state' is damaged on disk and is left out",
        ]
        before = store.bytes_used
        store.put([])
        assert store.bytes_used <= before - 8192


def test_a_page_under_another_ones_number_is_none(tmp_path: Path) -> None:
    written(tmp_path, 4)
    with lmdb.open(str(tmp_path), max_dbs=3) as env, env.begin(write=True) as txn:
        for name in (b"index", b"pages"):
            db = env.open_db(name, txn=txn)
            txn.put((2).to_bytes(8, "big"), txn.get((1).to_bytes(8, "big"), db=db), db=db)
    with opened(tmp_path) as store:
        assert (store.page(2), len(store)) == (None, 3)


def test_an_older_payload_of_the_same_page_is_not_taken_for_the_newer_one(tmp_path: Path) -> None:
    written(tmp_path, 4)
    with lmdb.open(str(tmp_path), max_dbs=3) as env, env.begin(write=True) as txn:
        txn.put((2).to_bytes(8, "big"), payload_of(2, 1), db=env.open_db(b"pages", txn=txn))
    with opened(tmp_path) as store:
        assert store.page(2) is None


FLIP_ANYWHERE = """
import json, random, shutil
from modularbase_core.errors import SessionError
kept, work, chance = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
whole = (kept / "data.mdb").read_bytes()
# half of the flips where the tree is: blocks that are heads, branches or leaves
tree = [at for at in range(0, len(whole), 4096) if at < 8192 or whole[at + 10] in (1, 2)]
outcomes = {"right": 0, "refused": 0, "dropped": 0}
for _ in range(int(sys.argv[4])):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    data = bytearray(whole)
    anywhere = chance.randrange(len(data))
    data[chance.choice((anywhere, chance.choice(tree) + chance.randrange(160)))] ^= 1 << chance.randrange(8)
    (work / "data.mdb").write_bytes(data)
    try:
        with opened(work) as store:
            for change in (True, False):
                found = {index: store.page(index) for index in range(130)}
                wrong = [i for i, at in found.items() if at is not None and at.payload[:8192] != payload_of(i)]
                assert not wrong, wrong
                assert [entry.index for entry in store.entries()] == [i for i, at in found.items() if at is not None]
                if change:
                    store.drop(range(0, 60, 7))
                    store.put([page(index) for index in range(100, 130)])
            outcomes["dropped" if store.take_faults() else "right"] += 1
    except SessionError:
        outcomes["refused"] += 1
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_ends_in_right_pages_dropped_ones_or_one_error(tmp_path: Path, seed: int) -> None:
    with opened(tmp_path / "kept") as store:
        for first in range(0, 100, 5):
            store.put([page(index) for index in range(first, first + 5)])
        store.drop(range(60, 80))
    count = 80 if seed == 1 else 3000
    child = in_a_child(FLIP_ANYWHERE, tmp_path / "kept", tmp_path / "work", seed, count)
    output, problem = child.communicate()
    assert child.returncode == 0, problem  # below zero where LMDB ended the process
    outcomes = json.loads(output)
    assert all(outcomes.values()), outcomes
