"""The pack template: what it renders parses, trains, builds, and is found once it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from importlib_metadata import distributions
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tiny_packs import catalog_of, manifest, write_pack

from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import architecture_to_dict
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.recipe import Recipe, read_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
CHOICES = {
    "defaults": {},
    "one word": {"domain": "chess", "licence": "MIT"},
    "another script": {"domain": "法律 咨询", "author": "王小明", "languages": "zh, zh-Hant,en"},
    "own names": {
        "domain": "SQL tips & tricks",
        "display_name": "Tom's <SQL> 100% 🐟",
        "pack_id": "sql-tips",
        "alias": "sql",
        "distribution": "Acme.Packs-SQL",
        "description": "It's about `SELECT` {and} more.",
        "author": "O'Brien & Sons",
        "licence": "LicenseRef-Proprietary",
    },
}


def render(folder: Path, **answers: str) -> Path:
    """Render the template away from the user's own settings of cookiecutter; return the project."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"cookiecutters_dir": str(folder / "templates"), "replay_dir": str(folder / "replay")}
    (folder / "settings.json").write_text(json.dumps(settings))  # JSON is YAML
    template, out = str(ROOT / "cookiecutter-pack"), str(folder / "out")
    options = {"no_input": True, "output_dir": out, "config_file": str(folder / "settings.json")}
    return Path(cookiecutter(template, extra_context=answers, **options))


def only_recipe(project: Path) -> Recipe:
    (path,) = (project / "recipes").glob("*.toml")
    return read_recipe(path)


def described(project: Path) -> dict:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ship(project: Path) -> Path:
    """Write a random pack where and as the recipe ships one; return its directory."""
    recipe = only_recipe(project)
    value = {"schema": 1, **recipe.manifest, "architecture": architecture_to_dict(recipe.pack)}
    return write_pack((recipe.folder / recipe.ship).resolve(), Manifest.from_dict(value))


def run(*command: object, **more: object) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= more.pop("env", {})
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **more)


@pytest.fixture(scope="module", params=CHOICES.values(), ids=CHOICES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered project; not to be written to."""
    return render(tmp_path_factory.mktemp("template"), **request.param)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with a pack, and a folder into which its wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    project = render(folder)
    ship(project)
    (project / "data/chats.jsonl").write_text('{"prompt": "mine", "response": "alone"}')
    for kind in ("wheel", "sdist"):
        done = run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder / "dist", cwd=project)
        assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return project, folder / "site"


def test_every_file_is_rendered_whole(project):
    for path in (path for path in project.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert "cookiecutter" not in text + str(path.relative_to(project))
        assert "{{" not in text
        assert "{%" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


def test_what_is_rendered_is_linted_clean(project):
    ruff = (sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W,I,UP,B", "--line-length", 120)
    done = run(*ruff, "--no-cache", ".", cwd=project)
    assert done.returncode == 0, done.stdout


def test_the_recipe_fits_the_nano_set(project):
    nano = ROOT / "plugins_example/modularbase-nano/recipes"
    recipe, chat = only_recipe(project), read_recipe(nano / "chat.toml")
    assert (recipe.stage, recipe.base, recipe.start) == ("pack", chat.base, chat.name)
    assert (recipe.architecture, recipe.pack) == (chat.architecture, chat.pack)
    assert recipe.router == read_recipe(nano / "router.toml").router
    assert sum(source.tokens for source in recipe.mix) == recipe.tokens
    assert recipe.examples
    assert recipe.others


def test_manifest_and_project_say_the_same(project):
    told, shipped = described(project), only_recipe(project).manifest
    assert shipped["version"] == told["version"]
    assert shipped["licence"] == told["license"]
    assert shipped["description"] == told["description"]
    (needed,) = map(Requirement, told["dependencies"])
    (compatible,) = shipped["base_compatibility"]
    for version in ("0.9", "1.0.0", "1.7", "2.0"):
        assert (version in needed.specifier) == (version in SpecifierSet(f"=={compatible}.*"))
    assert needed.name == "modularbase-nano"


def test_answers_arrive_as_they_were_given(tmp_path):
    project = render(tmp_path, **CHOICES["own names"])
    shipped = only_recipe(project).manifest
    assert project.name == "Acme.Packs-SQL"
    assert (project / "acme_packs_sql/__init__.py").is_file()
    assert (shipped["id"], shipped["aliases"], shipped["name"]) == ("sql-tips", ["sql"], "Tom's <SQL> 100% 🐟")
    assert described(project)["authors"] == [{"name": "O'Brien & Sons"}]


def test_names_are_derived_from_the_domain(tmp_path):
    project = render(tmp_path, **CHOICES["another script"])
    shipped = only_recipe(project).manifest
    assert project.name == "modularbase-pack-fa-lu-zi-xun"
    assert (shipped["id"], shipped["aliases"]) == ("fa_lu_zi_xun", ["fa"])
    assert (shipped["name"], shipped["languages"]) == ("法律 咨询", ["zh", "zh-Hant", "en"])


def test_an_alias_that_is_the_id_is_left_out(tmp_path):
    assert only_recipe(render(tmp_path, domain="chess")).manifest["aliases"] == []


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"pack_id": "My_Pack"}, "pack_id is 'My_Pack'; use lower-case letters and digits, joined by - or _"),
        ({"pack_id": "general_chat"}, "pack_id 'general_chat' belongs to the nano set; choose another"),
        ({"module": "2nd"}, "module is '2nd'; use lower-case letters, digits and _, with no digit first"),
        ({"display_name": 'the "best"'}, "display_name is 'the \"best\"'; use one line without double quotes"),
        ({"languages": ""}, "languages is ''; use language codes such as `en, zh`"),
    ],
)
def test_an_answer_that_would_not_load_is_refused(tmp_path, capfd, answers, told):
    with pytest.raises(FailedHookException):
        render(tmp_path, **answers)
    assert told in capfd.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_a_shipped_pack_passes_the_check(tmp_path):
    assert check_pack(ship(render(tmp_path, domain="chess"))).id == "chess"


def test_the_wheel_holds_the_pack_and_the_sdist_no_data(site):
    _, installed = site
    pack = installed / "modularbase_pack_gardening_tips/gardening_tips"
    assert check_pack(pack).id == "gardening_tips"
    assert {path.name for path in pack.iterdir()} >= {"manifest.json", "model.safetensors", "routing.safetensors"}
    assert not list(installed.rglob("*.jsonl"))
    (sdist,) = (installed.parent / "dist").glob("*.tar.gz")
    listed = run("tar", "-tzf", sdist).stdout
    assert "data/README.md" in listed
    assert "chats.jsonl" not in listed


def test_the_installed_entry_point_offers_the_pack(site, monkeypatch):
    monkeypatch.syspath_prepend(site[1])
    (one,) = distributions(path=[str(site[1])])
    catalog = discover(found=one.entry_points.select(group="modularbase"))
    monkeypatch.delitem(sys.modules, "modularbase_pack_gardening_tips")
    assert catalog.broken == ()
    assert [(pack.id, pack.distribution) for pack in catalog.packs] == [
        ("gardening_tips", "modularbase-pack-gardening-tips")
    ]
    assert catalog.find("gardening").manifest.name == "Gardening tips"


def test_its_own_tests_pass_once_the_model_card_is_filled_in(site):
    project, installed = site
    pytest_here = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    done = run(*pytest_here, cwd=project, env={"PYTHONPATH": str(installed)})
    assert "1 failed, 3 passed" in done.stdout
    assert "test_the_model_card_is_filled_in" in done.stdout
    card = project / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("TO FILL IN", "Filled in"), encoding="utf-8")
    done = run(*pytest_here, cwd=project, env={"PYTHONPATH": str(installed)})
    assert "4 passed" in done.stdout, done.stdout


def test_the_installed_nano_set_becomes_the_runs_to_start_from(tmp_path):
    from modularbase_core.train.checkpoints import build_model

    project = render(tmp_path)
    recipe = only_recipe(project)
    nano = (
        manifest("nano-base", "base", recipe.architecture),
        manifest("nano-router", "router", recipe.router),
        manifest("general_chat", "system", recipe.pack),
    )
    catalog = catalog_of({one.id: write_pack(tmp_path / one.id, one) for one in nano})
    spec = importlib.util.spec_from_file_location("start", project / "recipes/start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    start.lay_out(catalog, project)

    model = build_model(recipe, project / "runs", begin=0)
    assert not any(value.requires_grad for value in model.base.parameters())
    assert (recipe.folder / recipe.tokenizer).is_file()
    for name in ("base", "router"):
        check_pack(recipe.folder / recipe.over / name)
