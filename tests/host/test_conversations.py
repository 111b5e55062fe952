"""Where conversations without a name lie, and when they go away."""

from cold_pages import opened, written

from modularbase_core.host.conversations import sweep


def test_what_killed_processes_left_is_deleted_and_what_is_open_or_not_ours_stays(tmp_path):
    written(tmp_path / "spill-left", 2)
    written(tmp_path / "spill-torn", 2)
    (tmp_path / "spill-torn" / "data.mdb").write_bytes(b"torn" * 4000)
    written(tmp_path / "garden", 2)
    with opened(tmp_path / "spill-open"):
        sweep(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["garden", "spill-open"]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["garden"]
