import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.packs.history import MAX_PACKS, MAX_TURNS, History


def test_who_follows_often_is_likely_and_chance_is_not():
    history = History()
    for now in ["b"] * 6 + ["c"] * 9 + ["d"]:
        history.observe("a", now)
    assert history.likely("a") == ["c", "b"]
    assert history.likely("b") == []


def test_counts_are_kept_in_a_file_and_added_to_what_others_wrote(tmp_path):
    path = tmp_path / "cache" / "history.json"
    one, other = History(path), History(path)
    for history in (one, other):
        for _ in range(2):
            history.observe("a", "b")
        history.save()
    assert json.loads(path.read_text()) == {"a": {"b": 4}}
    one.save()
    assert json.loads(path.read_text()) == {"a": {"b": 4}}, "nothing is counted twice"
    assert History(path).likely("a") == ["b"]


def test_habits_may_change():
    history = History()
    for _ in range(10 * MAX_TURNS):
        history.observe("a", "old")
    for _ in range(MAX_TURNS):
        history.observe("a", "new")
    assert history.likely("a")[0] == "new"


def test_the_file_stays_small(tmp_path):
    path = tmp_path / "history.json"
    history = History(path)
    for number in range(3 * MAX_PACKS):
        history.observe(f"pack{number}", "b")
        history.observe("a", f"pack{number}")
    history.save()
    kept = json.loads(path.read_text())
    assert len(kept) <= MAX_PACKS
    assert "a" in kept
    assert all(len(followers) <= MAX_PACKS for followers in kept.values())


@pytest.mark.parametrize(
    "text", ["", "[1]", "null", '{"a": 3}', '{"a": {"b": "many"}}', '{"a": {"b": -1}}', "\x00", "[" * 100_000]
)
def test_a_damaged_file_is_an_empty_history(tmp_path, text):
    path = tmp_path / "history.json"
    path.write_text(text)
    history = History(path)
    assert history.likely("a") == []
    history.observe("a", "b")
    history.save()
    assert json.loads(path.read_text()) == {"a": {"b": 1}}


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_taken(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any-history.json"
    path.write_text(json.dumps(value))
    history = History(path)
    for before in value if isinstance(value, dict) else ():
        assert all(isinstance(one, str) for one in history.likely(before))


def test_a_folder_that_cannot_be_written_loses_the_counts_alone(tmp_path):
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "history.json")
    history.observe("a", "b")
    history.save()
    history.observe("a", "b")
    assert history.likely("a") == ["b"]
