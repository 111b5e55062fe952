"""`pack init` and `pack start`: what they ask, refuse, write and say."""

import json
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
from tiny_packs import catalog_of

from modularbase_core.cli.pack import init
from modularbase_core.cli.pack.template import Template
from modularbase_core.host import start_pack
from modularbase_core.packs.catalog import BrokenPlugin, Catalog
from modularbase_core.sdk import Manifest
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.messages import read_messages
from modularbase_core.train.recipe import read_recipe


@pytest.fixture
def catalog(tiny_packs, monkeypatch):
    """Let commands find the tiny packs; the list may be changed."""
    found = [catalog_of(tiny_packs)]
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: found[0])
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, where the command runs."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def make(run, catalog, folder, cache):
    """Run `pack init` in the empty folder."""
    return lambda *arguments, **more: run("pack", "init", "--cache", str(cache), *arguments, **more)


def data_of(project):
    (path,) = project.glob("*/*/manifest.json")
    return path.parent


def test_a_pack_is_made_whole(make, folder):
    done = make("--domain", "medical", "--name", "医疗问答包", "--author", "王", "--language", "zh", "--language", "en")
    assert done.code == 0
    assert done.out.startswith("modularbase-pack-medical is a pack. It answers as general chat does")
    assert "cd modularbase-pack-medical" in done.out
    (project,) = folder.iterdir()
    made = check_pack(data_of(project))
    assert (made.id, made.name, made.languages) == ("medical", "医疗问答包", ("zh", "en"))
    assert (made.base, made.base_compatibility, made.fallback) == ("tiny-base", ("1.0",), ("general_chat",))
    assert project.stat().st_mode & 0o777 == folder.stat().st_mode & 0o777


def test_the_recipe_fits_the_base_that_is_installed(make, folder):
    make("--domain", "medical")
    recipe = read_recipe(folder / "modularbase-pack-medical/recipes/medical.toml")
    assert (recipe.base, recipe.start, recipe.windows) == ("tiny-base", "general_chat", ((0.6, 64), (0.4, 128)))


def test_texts_come_along_and_the_recipe_learns_from_them(make, folder, tmp_path):
    pages = tmp_path / "pages"
    (pages / "deep").mkdir(parents=True)
    for number in range(40):
        (pages / "deep" / f"{number:02}.md").write_text(f"# Soil {number}\n\n{'Roots need air and water. ' * 9}")
    (pages / "image.png").write_bytes(b"no text")
    done = make("--domain", "soil", "--texts", str(pages))
    assert "38 files to learn from are in data/texts, 2 to measure with in data/held_out." in done.out
    assert "modularbase train pack recipes/soil.toml --ship" in done.out
    project = folder / "modularbase-pack-soil"
    recipe = read_recipe(project / "recipes/soil.toml")
    data = recipe.folder / recipe.data
    assert [source.sections for source in recipe.mix] == [True, False]
    assert sum(source.tokens for source in recipe.mix) == recipe.tokens
    assert len(list((data / "texts").rglob("*.md"))) == 38
    assert len(list((data / "held_out").rglob("*.md"))) == 2
    said = {message.text for message in read_messages(recipe.examples, data, recipe.folder, 1)}
    assert {"soil"} == {message.domain for message in read_messages(recipe.examples, data, recipe.folder, 1)}
    assert any(text.endswith("oil 1?") for text in said)


def test_texts_that_hold_nothing_to_read_leave_nothing_behind(make, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    done = make("--domain", "soil", "--texts", str(tmp_path / "empty"))
    assert done.code == 1
    assert "holds no file that can be read" in done.err
    assert not list(folder.iterdir())


def test_the_base_is_required_as_its_distribution_is_installed(make, folder, catalog):
    (base, *others) = catalog[0].packs
    catalog[0] = Catalog((replace(base, distribution="pluggy"), *others))
    make("--domain", "medical")
    told = (folder / "modularbase-pack-medical/pyproject.toml").read_text()
    major, minor = version("pluggy").split(".")[:2]
    assert f'dependencies = ["pluggy=={major}.{minor}.*"]' in told


def test_quiet_says_where_it_is_and_json_says_all(make, folder):
    assert make("--domain", "chess", "--quiet").out == "modularbase-pack-chess\n"
    told = json.loads(make("--domain", "go", "--id", "weiqi", "--json").out)
    assert told == {"id": "weiqi", "directory": "modularbase-pack-weiqi", "problem": None}


def test_it_is_made_in_the_folder_that_is_named(make, folder, tmp_path):
    other = tmp_path / "an other"
    other.mkdir()
    done = make("--domain", "chess", "--output", str(other))
    assert f"cd '{other}/modularbase-pack-chess'" in done.out
    assert [path.name for path in other.iterdir()] == ["modularbase-pack-chess"]
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "name", ["医疗问答包", "حزمة طبية", "Пакет «врач»", "🩺" * 100, "O'Neill & <b>Söhne</b> 100%", "\u200f#1"]
)
def test_a_name_in_any_script_arrives(make, folder, name):
    assert make("--domain", "medical", "--name", name).code == 0
    assert check_pack(data_of(folder / "modularbase-pack-medical")).name == name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--domain", "医疗"), "no plain id follows from the domain '医疗'; give one, such as --id yi_liao"),
        (("--domain", "🩺"), "no plain id follows from the domain '🩺'; give one, such as --id my_pack"),
        ((), "no --domain is given; say what the pack is about, in a few words"),
        (("--domain", " "), "the domain is ''; use one line of text without double quotes and backslashes"),
        (("--domain", "{{ 1/0 }}"), "the domain is '{{ 1/0 }}'; leave out the brackets of the template language"),
        (("--domain", "x", "--name", 'a"b'), "the name is 'a\"b'; use one line of text without double quotes"),
        (("--domain", "x", "--author", "a\nb"), "the author is 'a\\nb'; use one line of text"),
        (("--domain", "x", "--id", "../x"), "the id is '../x'; use lower-case letters and digits, joined by - or _"),
        (("--domain", "x", "--id", "/etc/x"), "the id is '/etc/x'; use lower-case letters and digits"),
        (("--domain", "x", "--id", "a b"), "the id is 'a b'; use lower-case letters and digits"),
        (
            ("--domain", "x", "--id", "a" * 500),
            f"the id is '{'a' * 40}'... (500 characters); use at most 50 characters",
        ),
        (("--domain", "import"), "the id is 'import'; it is a reserved word of Python, choose another"),
        (("--domain", "x", "--id", "nul"), "the id is 'nul'; Windows takes no file of that name, choose another"),
        (("--domain", "x", "--id", "general_chat"), "the id is 'general_chat'; it belongs to the nano set"),
        (
            ("--domain", "x", "--id", "python"),
            "the id 'python' belongs to the installed pack 'python_code'; give another",
        ),
        (("--domain", "x", "--id", "tiny-router"), "the id 'tiny-router' belongs to the installed pack 'tiny-router'"),
        (("--domain", "x", "--licence", "mit"), "the licence is 'mit'; use one of Apache-2.0, MIT,"),
        (("--domain", "x", "--licence", "Apache2.0"), "the licence is 'Apache2.0' (did you mean 'Apache-2.0'?)"),
        (("--domain", "x", "--language", "english"), "the list of languages is 'english'; use language codes"),
        (("--domain", "x", "--base", "none"), "no pack 'none' is installed"),
        (("--domain", "x", "--base", "general_chat"), "pack 'general_chat' is a system pack, not a base"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(make, folder, arguments, told):
    done = make(*arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {told}")
    assert done.err.count("\n") == 1
    assert not list(folder.iterdir())


def test_an_alias_that_is_taken_is_not_taken_again(make, folder):
    make("--domain", "python tips")
    assert check_pack(data_of(folder / "modularbase-pack-python-tips")).aliases == ()
    make("--domain", "garden tips")
    assert check_pack(data_of(folder / "modularbase-pack-garden-tips")).aliases == ("garden",)


def test_what_is_there_already_is_not_touched(make, folder):
    (folder / "modularbase-pack-chess").mkdir()
    done = make("--domain", "chess")
    assert done.err == "error: modularbase-pack-chess exists already; remove it, or give another --id or --output\n"
    assert not list((folder / "modularbase-pack-chess").iterdir())
    assert len(list(folder.iterdir())) == 1


def test_several_bases_need_a_choice(make, catalog, folder):
    (base, *others) = catalog[0].packs
    other = replace(base, manifest=replace(base.manifest, id="other-base"))
    catalog[0] = Catalog((base, other, *others))
    assert make("--domain", "chess").err == (
        "error: several bases are installed (tiny-base, other-base); name one with --base\n"
    )
    assert make("--domain", "chess", "--base", "tiny-base").code == 0


def test_without_a_base_it_is_rendered_and_its_data_made_later(make, run, catalog, folder, cache):
    whole, catalog[0] = catalog[0], Catalog(broken=(BrokenPlugin("nano", "modularbase-nano", "it burnt"),))
    done = make("--domain", "chess")
    project = folder / "modularbase-pack-chess"
    assert (done.code, done.out) == (0, "modularbase-pack-chess\n")
    assert done.err == (
        "note: modularbase-pack-chess has no data yet (no base is installed; run `pip install modularbase-nano` (nano "
        "is broken: it burnt)); later run `modularbase pack start modularbase-pack-chess`\n"
    )
    draft = Manifest.read(data_of(project) / "manifest.json")
    assert (draft.base, draft.architecture) == ("nano-base", None)

    catalog[0] = whole
    refused = run("pack", "start", str(project), "--cache", str(cache))
    assert refused.err.startswith("error: no pack 'nano-base' is installed")
    manifest = data_of(project) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("nano-base", "tiny-base").replace('"1.1"', '"1.0"'))
    done = run("pack", "start", str(project), "--cache", str(cache))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"chess 0.1.0 is ready in {data_of(project)} (0.")
    check_pack(data_of(project))
    again = json.loads(run("pack", "start", str(data_of(project)), "--cache", str(cache), "--json").out)
    assert again == {"id": "chess", "version": "0.1.0", "directory": str(data_of(project))}


def test_start_finds_the_one_pack_of_a_project(run, catalog, folder):
    assert run("pack", "start").err == (
        "error: . holds no pack, for it has no manifest.json; name a pack's folder or project\n"
    )
    for name in ("a", "b"):
        (folder / "module" / name).mkdir(parents=True)
        (folder / "module" / name / "manifest.json").write_text("{}")
    assert run("pack", "start", ".").err == (
        "error: . holds several packs (module/a, module/b); name one of these folders\n"
    )


def test_data_that_cannot_be_made_leaves_the_project_and_fails(make, folder, monkeypatch):
    def fails(*arguments):
        raise start_pack.PackError("the disk is full; free space")

    monkeypatch.setattr(start_pack, "start_pack", fails)
    done = make("--domain", "chess")
    assert (done.code, done.out) == (1, "modularbase-pack-chess\n")
    assert "has no data yet (the disk is full; free space); later run `modularbase pack start" in done.err
    assert not (data_of(folder / "modularbase-pack-chess") / "model.safetensors").exists()


@pytest.mark.parametrize("place", ["rendering", "making data"])
def test_ctrl_c_leaves_nothing(make, folder, monkeypatch, place):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    if place == "rendering":
        monkeypatch.setattr("cookiecutter.generate.generate_file", interrupted)
    else:
        monkeypatch.setattr(start_pack, "start_pack", interrupted)
    assert make("--domain", "chess").code == 130
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(make, folder, monkeypatch):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init.tempfile, "mkdtemp", full)
    assert make("--domain", "chess").err == (
        "error: modularbase-pack-chess cannot be written (No space left on device); "
        "free space or give another --output\n"
    )


def test_without_cookiecutter_it_says_what_to_install(make, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cookiecutter.generate", None)
    done = make("--domain", "chess")
    assert done.code == 1
    assert done.err.startswith("error: the template needs cookiecutter (")
    assert done.err.endswith("; run `pip install 'modularbase[author]'`\n")


def test_on_a_terminal_it_asks_until_the_answer_will_do(make, folder):
    answers = ["", "sewing", "", "Sewing", "sewing_tips", "en, de", "", "nonsense", "MIT"]
    done = make(stdin=("\n".join(answers) + "\n").encode(), terminal=True)
    assert done.code == 0
    made = check_pack(data_of(folder / "modularbase-pack-sewing-tips"))
    assert (made.id, made.name, made.languages, made.licence) == ("sewing_tips", "Sewing", ("en", "de"), "MIT")
    assert "the id is 'Sewing'; use lower-case letters and digits" in done.err


def test_on_a_terminal_it_asks_for_the_id_alone_where_none_follows(make, folder):
    done = make("--domain", "医疗", stdin=b"\n", terminal=True)
    assert done.err.startswith("Id, for the command line [yi_liao]:")
    assert check_pack(data_of(folder / "modularbase-pack-yi-liao")).keywords == ("医疗",)


def test_what_pip_compiled_in_the_template_is_not_rendered(tmp_path):
    template = Template.find()
    answers = template.answers({"domain": "chess"})
    copied = tmp_path / "template"
    shutil.copytree(template.folder, copied)
    for name in (
        "hooks",
        "{{cookiecutter.distribution}}/tests",
        "{{cookiecutter.distribution}}/{{cookiecutter.module}}",
    ):
        (copied / name / "__pycache__").mkdir()
        (copied / name / "__pycache__/a.cpython-311.pyc").write_bytes(b"\0\1")
    project = Template(copied).render(answers, tmp_path)
    assert not list(project.rglob("*.pyc"))
    assert (project / "tests/test_pack.py").is_file()
