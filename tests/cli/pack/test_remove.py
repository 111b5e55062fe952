"""`modularbase pack remove` with a pip that only pretends."""

from dataclasses import replace

import pytest
from tiny_packs import PACK, manifest, write_pack

from modularbase_core.packs.catalog import BrokenPlugin
from modularbase_core.packs.pip import Outcome
from modularbase_core.sdk.manifest import Manifest


def test_remove_asks_and_uninstalls(run, site):
    done = run("pack", "remove", "python", terminal=True, stdin=b"n\n")
    assert (done.code, site.pip.asked) == (130, [])
    assert f"{site.python} goes, and with it: python_code" in done.err
    done = run("pack", "remove", "python", terminal=True, stdin=b"y\n")
    assert done.code == 0
    assert [words[-1] for words in site.pip.asked] == [site.python]
    assert run("pack", "remove", "python", "--yes").code == 0


def test_remove_without_anybody_to_ask_is_an_error(run, site):
    done = run("pack", "remove", "python")
    assert (done.code, site.pip.asked) == (1, [])
    assert "nobody is there to be asked; give --yes" in done.err


@pytest.mark.parametrize("name", ["tiny-base", "tiny-router", "general_chat", "modularbase-tiny"])
def test_remove_leaves_the_residents(run, site, name):
    done = run("pack", "remove", name, "--yes", "--force")
    assert (done.code, site.pip.asked) == (1, [])
    assert "is always loaded" in done.err


def test_remove_names_who_needs_the_pack(run, site, tmp_path):
    needs = manifest("django", "domain", PACK).to_dict() | {"dependencies": [{"id": "python_code", "version": ""}]}
    site.add(write_pack(tmp_path / "site/django", Manifest.from_dict(needs)), "modularbase-pack-django")
    done = run("pack", "remove", "python", "--yes")
    assert (done.code, site.pip.asked) == (1, [])
    assert "other packs need what would go (django needs python_code)" in done.err
    assert run("pack", "remove", "python", "--yes", "--force").code == 0
    assert run("pack", "remove", "python", "django", "--yes").code == 0


def test_remove_takes_out_what_is_broken(run, site):
    site.add_broken(BrokenPlugin("bad", "modularbase-pack-bad", "ImportError"))
    done = run("pack", "remove", "bad", "--yes")
    assert done.code == 0
    assert site.pip.asked[0][-1] == "modularbase-pack-bad"


def test_remove_deletes_weights_that_no_other_pack_uses(run, site, tmp_path):
    first, content = site.add_apart()
    path = site.keep(first, content)
    site.add_apart("second")  # the same weights
    run("pack", "remove", "apart", "--yes")
    assert path.exists()
    site.catalog = replace(site.catalog, packs=tuple(one for one in site.catalog.packs if one.id != "apart"))
    assert "of downloaded weights" in run("pack", "remove", "second", "--yes").out
    assert not path.exists()


def test_remove_that_pip_refuses_deletes_nothing(run, site, tmp_path):
    one, content = site.add_apart()
    path = site.keep(one, content)
    site.pip.answers["uninstall"] = Outcome(1, "ERROR: Cannot uninstall\n")
    assert run("pack", "remove", "apart", "--yes").code == 1
    assert path.exists()


def test_remove_unpins(run, site, settings):
    run("pack", "pin", "python", "--config", str(settings))
    done = run("pack", "remove", "python", "--yes", "--config", str(settings))
    assert "unpinned python_code, which is gone" in done.out
    assert "pins = []" in settings.read_text()
