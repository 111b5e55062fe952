"""The pack template under plain cookiecutter: what it renders parses, says one thing everywhere, and builds."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from importlib_metadata import distributions
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tiny_packs import PACK, write_pack

from modularbase_core.cli.pack.template import Template
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.examples import read_examples
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
    "texts of the author": {"_texts": True},
    "another script": {"domain": "法律 咨询", "author": "王小明", "languages": "zh, zh-Hant,en"},
    "from right to left": {"domain": "الطبخ", "display_name": "حزمة الطبخ", "pack_id": "cooking", "languages": "ar"},
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
    "as long as may be": {
        "domain": "医" * 80,
        "display_name": "🐟" * 100,
        "pack_id": "a" * 50,
        "description": "长" * 400,
        "author": "王" * 100,
    },
}


@pytest.fixture(autouse=True, scope="module")
def _nothing_installed(tmp_path_factory):
    """Let the hook, which runs in a process of its own, find no base: `modularbase` is not to be imported there."""
    blocked = tmp_path_factory.mktemp("blocked") / "modularbase_core"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('not here')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(blocked.parent))
        yield


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
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


def data_of(project: Path) -> Path:
    (path,) = project.glob("*/*/manifest.json")
    return path.parent


def drafted(project: Path) -> Manifest:
    return Manifest.read(data_of(project) / "manifest.json")


@pytest.fixture(scope="module", params=CHOICES.values(), ids=CHOICES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered project; not to be written to."""
    return render(tmp_path_factory.mktemp("template"), **request.param)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of a project with random weights is installed; `dist` lies beside it."""
    folder = tmp_path_factory.mktemp("installed")
    project = render(folder)
    draft = {**drafted(project).to_dict(), "version": "2.5.0"}
    write_pack(data_of(project), replace(Manifest.from_dict(draft), architecture=PACK))
    (project / "data/chats.jsonl").write_text('{"prompt": "mine", "response": "alone"}')
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder / "dist")]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_is_rendered_whole(project):
    for path in (path for path in project.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert "cookiecutter" not in text + str(path.relative_to(project))
        assert "{{" not in text
        assert "{%" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


def test_what_is_rendered_passes_our_own_linter(project):
    settings = ("--config", ROOT / "pyproject.toml", "--no-cache")
    for command in (("check", *settings), ("format", "--check", *settings)):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *map(str, command), "."], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_the_recipe_leaves_to_the_installed_packs_what_is_theirs(project):
    recipe, chat = only_recipe(project), read_recipe(ROOT / "plugins_example/modularbase-nano/recipes/chat.toml")
    assert (recipe.stage, recipe.base, recipe.start) == ("pack", chat.base, chat.name)
    assert (recipe.architecture, recipe.pack, recipe.tokenizer, recipe.over, recipe.manifest) == (
        None,
        None,
        "",
        "",
        None,
    )
    assert sum(source.tokens for source in recipe.mix) == recipe.tokens
    assert (recipe.folder / recipe.ship).resolve() == data_of(project).resolve()
    assert recipe.examples


def test_manifest_and_project_say_the_same(project):
    told, draft = described(project)["project"], drafted(project)
    assert draft.licence == told["license"]
    assert draft.description == told["description"]
    assert draft.fallback == ("general_chat",)
    (needed,) = map(Requirement, told["dependencies"])
    (compatible,) = draft.base_compatibility
    shipped = SpecifierSet(">=1.1,<1.2")  # as the packs in plugins_example say
    for version in ("0.9", "1.0.7", "1.1.0", "1.1.7", "1.2", "2.0"):
        assert (version in needed.specifier) == (version in SpecifierSet(f"=={compatible}.*")) == (version in shipped)
    assert (needed.name, draft.base) == ("modularbase-nano", "nano-base")


def test_there_are_enough_examples_to_make_keys_from(project):
    prompts = [example.prompt for example in read_examples(data_of(project) / "examples.json")]
    assert len(set(prompts)) == len(prompts) >= 16
    assert all(drafted(project).keywords[0] in prompt for prompt in prompts)


def test_examples_are_in_the_languages_that_are_named(tmp_path):
    def begins(name: str, languages: str) -> list[str]:
        project = render(tmp_path / name, domain="chess", languages=languages)
        return [example.prompt for example in read_examples(data_of(project) / "examples.json")]

    english, chinese = begins("english", "en"), begins("chinese", "zh-Hans")
    assert "Tell me about chess" in english
    assert "请介绍一下chess" in chinese
    assert not set(english) & set(chinese)
    assert begins("both", "en,zh") == chinese + english
    assert begins("neither", "de") == english


def test_answers_arrive_as_they_were_given(tmp_path):
    project = render(tmp_path, **CHOICES["own names"])
    draft = drafted(project)
    assert project.name == "Acme.Packs-SQL"
    assert (project / "acme_packs_sql/__init__.py").is_file()
    assert (draft.id, draft.aliases, draft.name) == ("sql-tips", ("sql",), "Tom's <SQL> 100% 🐟")
    assert described(project)["project"]["authors"] == [{"name": "O'Brien & Sons"}]


def test_names_are_derived_from_the_domain(tmp_path):
    project = render(tmp_path, **CHOICES["another script"])
    draft = drafted(project)
    assert project.name == "modularbase-pack-fa-lu-zi-xun"
    assert (draft.id, draft.aliases) == ("fa_lu_zi_xun", ("fa",))
    assert (draft.name, draft.languages) == ("法律 咨询", ("zh", "zh-Hant", "en"))


def test_an_alias_that_is_the_id_is_left_out(tmp_path):
    assert drafted(render(tmp_path, domain="chess")).aliases == ()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"pack_id": "My_Pack"}, "the id is 'My_Pack'; use lower-case letters and digits, joined by - or _"),
        ({"pack_id": "general_chat"}, "the id is 'general_chat'; it belongs to the nano set, choose another"),
        ({"module": "2nd"}, "the module's name is '2nd'; use lower-case letters, digits and _, with no digit first"),
        ({"display_name": 'the "best"'}, "the name is 'the \"best\"'; use one line of text without double quotes"),
        ({"languages": ""}, "the list of languages is ''; use language codes such as `en, zh-Hans`"),
    ],
)
def test_plain_cookiecutter_refuses_what_would_not_load(tmp_path, capfd, answers, told):
    with pytest.raises(FailedHookException):
        render(tmp_path, **answers)
    assert told in capfd.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


HOSTILE = [
    *(("pack_id", value) for value in ("", " ", "a b", "a--b", "-a", "A", "é", "医疗", "a.b", "a/b", "../x", "/x")),
    *(("pack_id", value) for value in ("class", "none", "import", "con", "nul", "lpt9", "com1", "chat", "a" * 51)),
    *(("pack_id", value) for value in ("x\n", "x\0", "$(reboot)", "x;y", "{{ 1/0 }}", "~", "..", "C:x")),
    *(
        ("distribution", value)
        for value in ("../x", "/x", "a/b", ".x", "", "con", "nul.x", "modularbase", "Modularbase_Nano")
    ),
    *(("module", value) for value in ("2nd", "a-b", "a.b", "class", "tests", "data", "json", "modularbase_core", "")),
    *(
        ("display_name", value)
        for value in ("", "  ", 'a"b', "a\\b", "a\nb", "a\x1b[31m", "a\u202eb", "\udcff", "a" * 101)
    ),
    *(("domain", value) for value in ("{{ 7*7 }}", "{% for %}", "{# #}", "a\x85b", "a\u2028b", "", "a" * 81)),
    *(("languages", value) for value in ("EN", "english language", "en,,zh", "e", "en;zh")),
    ("author", "a\rb"),
    ("alias", "general"),
    ("description", "a\tb"),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=lambda text: repr(text)[:30])
def test_a_hostile_answer_is_one_short_printable_sentence(name, value):
    told = Template.find().problem({name: value})
    assert told
    assert told.isprintable()
    assert len(told) < 200


def test_what_a_hook_refuses_the_rules_refuse_and_nothing_else():
    assert Template.find().problem({"pack_id": "medical", "display_name": "医疗问答包 🩺", "author": "محمد"}) == ""
    assert Template.find().problem({"pack_id": "3d-printing"}) == ""
    assert Template.find().problem({}) == ""


def test_without_modularbase_the_data_is_left_for_later_and_said_so(tmp_path, capfd):
    project = render(tmp_path, domain="chess")
    note = "note: modularbase-pack-chess has no data yet: install modularbase and a base, then run "
    assert capfd.readouterr().err == f"{note}`modularbase pack start modularbase-pack-chess`\n"
    assert {path.name for path in data_of(project).iterdir()} == {"manifest.json", "examples.json"}


def test_the_wheel_holds_the_pack_and_the_sdist_no_data(site):
    pack = site / "modularbase_pack_gardening_tips/gardening_tips"
    assert check_pack(pack).id == "gardening_tips"
    assert {path.name for path in pack.iterdir()} >= {"manifest.json", "model.safetensors", "routing.safetensors"}
    assert not list(site.rglob("*.jsonl"))
    (sdist,) = (site.parent / "dist").glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", sdist], capture_output=True, text=True, check=True).stdout
    assert "data/README.md" in listed
    assert "chats.jsonl" not in listed


def test_the_manifest_alone_gives_the_version(site):
    (one,) = distributions(path=[str(site)])
    assert one.version == "2.5.0"


def test_the_installed_entry_point_offers_the_pack(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    (one,) = distributions(path=[str(site)])
    catalog = discover(found=one.entry_points.select(group="modularbase"))
    monkeypatch.delitem(sys.modules, "modularbase_pack_gardening_tips")
    assert catalog.broken == ()
    assert [(pack.id, pack.distribution) for pack in catalog.packs] == [
        ("gardening_tips", "modularbase-pack-gardening-tips")
    ]
    assert catalog.find("gardening").manifest.name == "Gardening tips"
