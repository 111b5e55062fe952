"""A new author's road: an empty environment with a base, `pack init`, a wheel, the pack's own tests, a chat."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from fresh_venv import FreshVenv, build_wheel
from tiny_packs import write_tiny_set

from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.testing import check_pack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
BASE = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "modularbase-tiny"
version = "1.0.3"
dependencies = ["modularbase"]

[project.entry-points.modularbase]
tiny = "modularbase_tiny"
"""
OFFERS = """\
from pathlib import Path
from modularbase_core.sdk import Pack, hookimpl


@hookimpl
def modularbase_packs():
    return [Pack(path.parent) for path in sorted(Path(__file__).parent.glob("*/manifest.json"))]
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Return the wheels of the core and of a distribution that brings a tiny base."""
    out, source = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("tiny")
    (source / "pyproject.toml").write_text(BASE)
    packs = write_tiny_set(source / "modularbase_tiny")
    shutil.rmtree(packs["python_code"])
    (source / "modularbase_tiny/__init__.py").write_text(OFFERS)
    return build_wheel(ROOT, out), build_wheel(source, out)


@pytest.fixture
def author(tmp_path, wheels):
    """A fresh environment with core and base."""
    venv = FreshVenv(tmp_path / "venv")
    venv.install_wheels(*wheels)
    return venv


@pytest.fixture
def here(cache, tmp_path):
    """Name the cache of compiled code, which the tests share, and hide the user's own settings."""
    return {"MODULARBASE_CACHE": str(cache), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def run_its_tests(author, project, here):
    done = author.attempt("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", project / "tests", env=here)
    return done.stdout


def answer(author, pack_id, here):
    options = ("--pack", pack_id, "-t", "0", "--max-tokens", "8", "--json", "--quiet")
    said = json.loads(author.modularbase("chat", *options, "Hello!", env=here))
    assert [one["id"] for one in said["packs"]] == [pack_id]
    return said["text"]


def test_an_untouched_pack_installs_passes_its_tests_and_chats(author, tmp_path, here):
    what = ("--domain", "medical", "--name", "医疗问答包", "--output", tmp_path, "--quiet")
    project = Path(author.modularbase("pack", "init", *what, env=here).strip())
    assert project == tmp_path / "modularbase-pack-medical"
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert told["dependencies"] == ["modularbase-tiny==1.0.*"]

    author.pip("install", "--no-index", build_wheel(project, tmp_path))  # fails where a requirement is not met
    passed = run_its_tests(author, project, here)
    assert "4 passed, 1 skipped" in passed
    assert "the weights are general chat's; fill in README.md once the pack is trained" in passed
    assert answer(author, "medical", here) == answer(author, "general_chat", here)


@pytest.mark.slow
def test_a_trained_pack_is_shipped_checked_and_fit_to_be_published_once_its_card_is_filled_in(author, tmp_path, here):
    author.modularbase("pack", "init", "--domain", "sums", "--output", tmp_path, "--quiet", env=here)
    project = tmp_path / "modularbase-pack-sums"
    chats = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"} for i in range(40)]
    (project / "data/chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    recipe = project / "recipes/sums.toml"
    recipe.write_text(recipe.read_text().replace("1_000_000", "10_240"))
    before = weights_of(project)
    train = ("train", recipe, "--data", project / "data", "--runs", project / "runs", "--ship", "--eager", "--quiet")
    author.modularbase(*train, env=here)
    assert weights_of(project) != before
    said = author.modularbase("pack", "check", project / "modularbase_pack_sums/sums")
    assert said.startswith("sums 0.1.0 is sound")

    author.pip("install", "--no-index", build_wheel(project, tmp_path))
    failed = run_its_tests(author, project, here)
    assert "1 failed, 4 passed" in failed
    assert "test_the_model_card_is_filled_in" in failed
    card = project / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("TO FILL IN", "Filled in"), encoding="utf-8")
    assert "5 passed" in run_its_tests(author, project, here)
    assert answer(author, "sums", here)


def weights_of(project):
    return check_pack(project / "modularbase_pack_sums/sums").files["model.safetensors"]


def test_plain_cookiecutter_makes_the_data_too_where_the_base_is_installed(author, tmp_path, here):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"cookiecutters_dir": str(tmp_path / "a"), "replay_dir": str(tmp_path / "b")}))
    options = ("--no-input", "-o", tmp_path, "--config-file", settings, ROOT / "cookiecutter-pack")
    of_tiny = ("_base=tiny-base", "_base_compatibility=1.0", "_base_requirement=modularbase-tiny==1.0.*")
    done = author.attempt("-m", "cookiecutter", *options, "domain=chess", *of_tiny, env=here)
    assert done.returncode == 0
    assert done.stdout.startswith("chess 0.1.0 is ready in modularbase_pack_chess/chess (")
    assert "note" not in done.stderr
    pack = tmp_path / "modularbase-pack-chess/modularbase_pack_chess/chess"
    assert check_pack(pack).base == "tiny-base"
    assert len(read_examples(pack / "examples.json")) == 20

    done = author.attempt("-m", "cookiecutter", *options, "domain=weiqi", env=here)
    assert done.returncode == 0
    assert done.stderr == (
        "note: modularbase-pack-weiqi has no data yet (no pack 'nano-base' is installed (did you mean 'tiny-base'?); "
        "`modularbase pack list` shows what is); later run `modularbase pack start modularbase-pack-weiqi`\n"
    )
    assert not (tmp_path / "modularbase-pack-weiqi/modularbase_pack_weiqi/weiqi/model.safetensors").exists()
