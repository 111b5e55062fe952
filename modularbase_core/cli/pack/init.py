"""`modularbase pack init`: a pack distribution from the template, which installs, chats and passes its tests."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.pack.start import make_data, no_data_yet, pack_folder
from modularbase_core.cli.pack.template import Answers, Template
from modularbase_core.cli.pack.texts import HELD_OUT, LEARNT, bring_texts
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ConfigError, ModularBaseError, PackError, nearest

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import Catalog, InstalledPack


@click.command()
@click.option("--domain", help="What the pack is about, in a few words.")
@click.option("--name", "display_name", help="Name that people see, in any script; by default the domain.")
@click.option("--id", "pack_id", help="Id of the pack; by default made from the domain.")
@click.option("--base", "base_id", metavar="ID", help="Base that it is for; by default the installed one.")
@click.option(
    "--output",
    default=".",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="Folder in which the project's own is made; by default this one.",
)
@click.option("--licence", help="Licence of the weights (SPDX); by default Apache-2.0.")
@click.option("--author", help="Who makes it.")
@click.option("--language", "languages", multiple=True, help="A language of it, such as en; may be repeated.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True),
    help="Folder or file of texts to learn from (.md, .txt, .jsonl, code); copied into the project's data/.",
)
@click.option("--quiet", is_flag=True, help="Show no progress, and of the outcome the project's folder alone.")
@json_option
@settings_options
@click.pass_context
def init(
    ctx: click.Context,
    /,
    base_id: str | None,
    output: Path,
    languages: tuple[str, ...],
    texts: Path | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
    **given: str | None,
) -> None:
    """Make the project of a new pack.

    It installs, passes its tests and answers as general chat does, until you train it. Without --domain it asks, on
    a terminal.
    """
    config = read_settings(config_file, cache_dir)
    catalog = installed(config)[0]
    base = choose_base(catalog, base_id or config.base)
    named = {key: text.strip() for key, text in given.items() if text is not None}
    if languages:
        named["languages"] = ", ".join(languages)
    answers = complete_answers(Template.find(), named, catalog, base, asks=not as_json and sys.stdin.isatty())
    answers["_texts"] = texts is not None
    target = output / answers["distribution"]
    problem: ModularBaseError | None = None
    with rendered(Template.find(), answers, target) as project:
        if texts is not None:
            learnt, held_out = bring_texts(texts, project / "data")
        try:
            make_data(pack_folder(project), config, catalog, quiet=quiet or as_json)
        except ModularBaseError as error:
            problem = error
    told = no_data_yet(target, problem) if problem else None
    if as_json:
        print_json({"id": answers["pack_id"], "directory": str(target), "problem": told})
    else:
        click.echo(target if quiet or told else _next_steps(answers, target))
        if texts is not None and not quiet:
            click.echo(
                f"\n{learnt} files to learn from are in data/{LEARNT}, {held_out} to measure with in data/{HELD_OUT}."
            )
        if told:
            click.echo(f"note: {told}", err=True)
    if problem and base is not None:
        ctx.exit(1)


def choose_base(catalog: Catalog, base_id: str | None) -> InstalledPack | None:
    """Return the base to make a pack for, None where none is installed; raises PackError."""
    from modularbase_core.packs import resolve

    bases = catalog.of_type("base")
    if base_id is None and len(bases) != 1:
        if not bases:
            return None
        raise PackError(f"several bases are installed ({', '.join(one.id for one in bases)}); name one with --base")
    return resolve.choose_base(catalog, base_id)


def complete_answers(
    template: Template, named: Mapping[str, str], catalog: Catalog, base: InstalledPack | None, *, asks: bool
) -> Answers:
    """Return all answers of the template, asking for what is open if `asks`; raises ConfigError and PackError."""
    if "domain" not in named:
        if not asks:
            raise ConfigError("no --domain is given; say what the pack is about, in a few words")
        named = _ask_for_all(template, named)
    _check(template, named)
    known = template.licences
    if (licence := named.get("licence", known[0])) not in known:
        raise ConfigError(f"the licence is {licence!r}{nearest(licence, known)}; use one of {', '.join(known)}")
    of_base = _facts(catalog, base) if base else {}
    answers = template.answers({**named, **of_base})
    domain, made = answers["domain"], answers["pack_id"]
    if "pack_id" not in named and not (domain.isascii() and made):
        if not asks:
            raise ConfigError(
                f"no plain id follows from the domain {domain!r}; give one, such as --id {made or 'my_pack'}"
            )
        chosen = _ask(template, "pack_id", "Id, for the command line", made or None)
        answers = template.answers({**named, **of_base, "pack_id": chosen})
    taken = {word: one.id for one in catalog.packs for word in (*one.manifest.aliases, one.id)}
    if answers["alias"] in taken or template.problem({"alias": answers["alias"]}):
        answers["alias"] = answers["pack_id"]
    _check(template, answers)
    if (pack_id := answers["pack_id"]) in taken:
        raise PackError(f"the id {pack_id!r} belongs to the installed pack {taken[pack_id]!r}; give another with --id")
    return answers


@contextmanager
def rendered(template: Template, answers: Answers, target: Path) -> Iterator[Path]:
    """Yield the project, rendered beside `target` and put there at the end; a failure leaves nothing."""
    if target.exists() or target.is_symlink():
        raise PackError(f"{target} exists already; remove it, or give another --id or --output")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".modularbase-", dir=target.parent))
        try:
            project = template.render(answers, scratch)
            yield project
            project.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise PackError(
            f"{target} cannot be written ({error.strerror}); free space or give another --output"
        ) from error


def _check(template: Template, answers: Mapping[str, Any]) -> None:  # Any: texts, and numbers among the private ones
    if told := template.problem(answers):
        raise ConfigError(told)


def _facts(catalog: Catalog, base: InstalledPack) -> Answers:
    """Return what the template has to know of the installed base."""
    from modularbase_core.packs.resolve import line_up
    from modularbase_core.sdk.architecture import BaseArchitecture

    network = base.manifest.network
    assert isinstance(network, BaseArchitecture)
    return {
        "_base": base.id,
        "_base_compatibility": _release(base.manifest.version),
        "_general_chat": line_up(catalog, base.id).general_chat.id,
        "_base_requirement": _requirement(base.distribution),
        "_trained_tokens": network.window.trained_tokens,
    }


def _requirement(distribution: str) -> str:
    from importlib_metadata import PackageNotFoundError, version

    try:
        return f"{distribution}=={_release(version(distribution))}.*"
    except (PackageNotFoundError, ValueError):  # no distribution brought it
        return "modularbase"


def _release(version: str) -> str:
    """Return the first two numbers of a version: what a pack is made for."""
    from packaging.version import Version

    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


def _ask_for_all(template: Template, named: Mapping[str, str]) -> dict[str, str]:
    """Ask for everything that is not given, with the template's answers as defaults."""
    answers = dict(named)
    answers["domain"] = _ask(template, "domain", "What is the pack about, in a few words", None)
    for key, text in (
        ("display_name", "Name that people see, in any script"),
        ("pack_id", "Id, for the command line"),
        ("languages", "Languages, with commas between them"),
        ("author", "Author"),
    ):
        if key not in answers:
            answers[key] = _ask(template, key, text, template.answers(answers)[key] or None)
    if "licence" not in answers:
        choice = click.Choice(template.licences)
        answers["licence"] = click.prompt("Licence of the weights", default=choice.choices[0], type=choice, err=True)
    return answers


def _ask(template: Template, key: str, text: str, default: str | None) -> str:
    def checked(value: str) -> str:
        if told := template.problem({key: value.strip()}):
            raise click.UsageError(told)
        return value.strip()

    answer: str = click.prompt(text, default=default, value_proc=checked, err=True)
    return answer


def _next_steps(answers: Answers, target: Path) -> str:
    return f"""{target} is a pack. It answers as general chat does, until you train it. Next:

  cd {shlex.quote(str(target))}
  pip install -e '.[dev]' && pytest
  modularbase chat --pack {answers["pack_id"]} "Hello!"
{_TRAIN.format(**answers) if answers["_texts"] else ""}
Its README.md leads from your data to a wheel."""


_TRAIN = """  modularbase train pack recipes/{pack_id}.toml --ship
"""
