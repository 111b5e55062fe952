"""What the READMEs and model cards say of the repository: files, commands, figures, and both languages alike."""

import json
import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest

from modularbase_core.cli.group import modularbase
from modularbase_core.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "docs" / "README.zh-CN.md"]
# a plugin without recipes has no model to tell of
CARDS = sorted(path for path in ROOT.glob("plugins_example/*/README.md") if (path.parent / "recipes").is_dir())
PAGES = [*READMES, *CARDS]
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:modularbase|pip|pytest|python\d?|cookiecutter) ")


def relative(path):
    return str(path.relative_to(ROOT))


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text):
    """What stands in fences, and what is indented by four blanks."""
    prose = FENCE.sub("", text)
    return [*FENCE.findall(text), *re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)]


def prose(text):
    return FENCE.sub("", text)


def headings(text):
    return re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)


def commands(text):
    """The command lines of blocks and code spans, without prompts and comments, split at &&."""
    lines = [line.removeprefix("$ ") for block in blocks(text) for line in block.splitlines()]
    for line in [*lines, *SPAN.findall(prose(text))]:
        if COMMAND.match(f"{line} "):
            for part in re.sub(r"\s+#.*", "", line).split(" && "):
                if COMMAND.match(f"{part} "):
                    yield part.strip()


def numbers(text):
    """Every number in order of size, `7.4 million` and `740 万` alike."""
    found = re.findall(r"(\d+(?:,\d{3})+|\d+(?:\.\d+)*)( million| 万)?", text)
    scale = {" million": 1e6, " 万": 1e4}
    return sorted(f"{float(n) * scale[unit]:.0f}" if unit else n.replace(",", "") for n, unit in found)


def sections(text):
    """The text under each heading, code blocks left out."""
    return re.split(r"^#+ .+$", prose(text), flags=re.MULTILINE)


def section(text, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def exists(path, page, word):
    assert path.exists(), f"{relative(page)} names {word}, which does not exist"


def test_both_languages_have_the_same_headings():
    english, chinese = (headings(read(path)) for path in READMES)
    assert [level for level, _ in english] == [level for level, _ in chinese]


def test_both_languages_give_the_same_commands_in_the_same_order():
    english, chinese = (list(commands(read(path))) for path in READMES)
    assert english
    assert english == chinese


def test_both_languages_give_the_same_figures_section_by_section():
    english, chinese = (sections(read(path)) for path in READMES)
    assert list(map(numbers, english)) == list(map(numbers, chinese))


def test_both_languages_name_the_same_things_in_code():
    english, chinese = (sorted(SPAN.findall(prose(read(path)))) for path in READMES)
    assert english == chinese


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_within_the_repository_leads_somewhere(page):
    text = prose(read(page))
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, f"{relative(page)} has no heading for {target}"
        elif "://" not in target:
            exists(page.parent / target.split("#")[0], page, target)


@pytest.mark.parametrize("page", READMES, ids=relative)
def test_every_file_of_the_tree_exists(page):
    tree = next(block for block in blocks(read(page)) if block.startswith("modularbase_core/"))
    folder, seen = ROOT, 0
    for line in tree.splitlines():
        for word in re.match(r"\s*((?:[\w./-]+(?:/|\.py)(?:\s+|$))+)", line)[1].split():
            if not line.startswith(" "):
                folder = ROOT / word
            path = folder / word if line.startswith(" ") else folder
            exists(path, page, word)
            seen += 1
    assert seen > len(tree.splitlines())


@pytest.mark.parametrize("page", READMES, ids=relative)
def test_every_file_on_the_arrows_of_a_turn_exists(page):
    turn = next(block for block in blocks(read(page)) if "turn/understand" in block)
    for folder, name in re.findall(r"\b([a-z]+)/([a-z]+)\b", turn):
        exists(ROOT / "modularbase_core" / folder / f"{name}.py", page, f"{folder}/{name}")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_path_and_name_in_code_exists(page):
    folders = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
    spans = SPAN.findall(prose(read(page)))
    for word in {word for text in [*commands(read(page)), *spans] for word in text.split()}:
        bare = word.removeprefix("./")
        if bare.startswith(folders):
            exists(ROOT / bare, page, word)
        elif bare.startswith("recipes/") and page in CARDS:
            exists(page.parent / bare, page, word)
        elif re.match(r"modularbase_(core|compiler)\.", bare):
            pkgutil.resolve_name(bare.split("(")[0])


def resolve(words):
    """The click command that words lead to, and the words left for it; fails on a name that is none."""
    command, name = modularbase, "modularbase"
    while isinstance(command, click.Group):
        # a group's own options stand before the command
        _, rest, _ = command.make_parser(click.Context(command)).parse_args(list(words))
        if not rest:
            break
        _, found, words = command.resolve_command(click.Context(command, info_name=name), rest)
        name = f"{name} {rest[0]}"
        assert found is not None, f"no command {name!r}"
        command = found
    return command, click.Context(command, info_name=name), words


def flags(command, context):
    return {flag for parameter in command.get_params(context) for flag in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_named_is_one_and_has_its_flags(page):
    ours = [line for line in commands(read(page)) if line.split()[0] == "modularbase"]
    assert ours or page in CARDS
    for line in ours:
        command, context, words = resolve(shlex.split(line)[1:])
        _, rest, _ = command.make_parser(context).parse_args(words)  # raises click.NoSuchOption
        assert not rest, f"{relative(page)}: {line!r} has {rest} over"


@pytest.mark.parametrize("page", READMES, ids=relative)
def test_a_flag_named_alone_belongs_to_the_command_of_its_row_or_to_some_command(page):
    known = {name: resolve([name]) for name in modularbase.list_commands(click.Context(modularbase))}
    every = set().union(*(flags(command, context) for command, context, _ in known.values()))
    named = 0
    for line in prose(read(page)).splitlines():
        spans = SPAN.findall(line)
        row = line.startswith("|") and spans and spans[0].split()[0] == "modularbase"
        allowed = flags(*resolve(re.findall(r"[a-z]+", spans[0])[1:])[:2]) if row else every
        for flag in (span.split()[0] for span in spans if span.startswith("-")):
            assert flag in allowed, f"{relative(page)}: {flag} in {line!r}"
            named += 1
    assert named


@pytest.mark.parametrize("card", CARDS, ids=relative)
def test_a_model_card_tells_the_figures_of_the_readme(card):
    told = section(read(card), "Figures")
    known = section(read(READMES[0]), "Numbers")
    assert "`python tests/bench/quality.py DATA`" in told
    figures = re.findall(r"\d+\.\d+|\d+ %", told)
    assert figures
    assert set(figures) <= set(re.findall(r"\d+\.\d+|\d+ %", known))


@pytest.mark.parametrize("card", CARDS, ids=relative)
def test_a_model_card_agrees_with_its_recipes_and_manifests(card):
    text = read(card)
    recipes = [read_recipe(path) for path in sorted(card.parent.glob("recipes/*.toml"))]
    manifests = [json.loads(read(path)) for path in sorted(card.parent.glob("*/*/manifest.json"))]
    shipped = {recipe.manifest["id"] for recipe in recipes if recipe.manifest}
    assert shipped == {manifest["id"] for manifest in manifests}
    for recipe in recipes:
        count = f"{recipe.tokens:,} {'messages' if recipe.stage == 'router' else 'tokens'}"
        assert count in text
        assert f"{recipe.steps:,} steps" in text
    for manifest in manifests:
        assert f"`{manifest['id']}`" in text
        assert f"The weights are under {manifest['licence']}" in section(text, "Texts")
