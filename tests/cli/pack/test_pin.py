"""`modularbase pack pin` and `unpin`: the settings file, and nothing else of it, changes."""

import pytest


def test_pins_are_written_beside_comments(run, site, settings):
    assert "pinned python_code in" in run("pack", "pin", "python", "--config", str(settings)).out
    text = settings.read_text()
    assert 'pins = ["python_code"]' in text
    assert text.startswith("# mine\nslots = 3  # enough\n\n# and this\nthreads = 2\n")
    assert settings.stat().st_mode & 0o777 == 0o600
    assert run("pack", "pin", "python_code", "--config", str(settings)).out == "python_code is pinned already\n"
    assert run("pack", "unpin", "python", "--config", str(settings)).out == "unpinned python_code\n"
    assert "pins = []" in settings.read_text()
    assert "is not pinned" in run("pack", "unpin", "python", "--config", str(settings)).err


def test_a_link_to_the_settings_stays_one(run, site, settings, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to(settings)
    assert run("pack", "pin", "python", "--config", str(link)).code == 0
    assert link.is_symlink()
    assert "python_code" in settings.read_text()


def test_settings_that_are_not_there_are_begun(run, site, tmp_path):
    assert run("pack", "pin", "python").code == 0
    assert (tmp_path / "none.toml").read_text() == 'pins = ["python_code"]\n'


@pytest.mark.parametrize("name", ["tiny-base", "tiny-router", "general_chat"])
def test_what_is_always_loaded_is_not_pinned(run, site, name):
    assert "is always loaded; there is nothing to pin" in run("pack", "pin", name).err


def test_a_slot_stays_free_beside_the_pins(run, site, settings):
    settings.write_text("slots = 1\n")
    done = run("pack", "pin", "python", "--config", str(settings))
    assert done.code == 1
    assert "of 1 slots one must stay free" in done.err
    assert settings.read_text() == "slots = 1\n"
