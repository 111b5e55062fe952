"""What the commands that run pip share: its options, whether its progress is shown, and the weights that follow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modularbase_core.cli.progress import byte_bar
from modularbase_core.errors import ModularBaseError

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import InstalledPack
    from modularbase_core.packs.pip import Pip, Sources

# Any, because click decorates commands of every signature
_Command = TypeVar("_Command", bound=Callable[..., Any])


def source_options(command: _Command) -> _Command:
    """Add where pip looks; `sources` takes what they give."""
    for option in (
        click.option("--pre", is_flag=True, help="Take pre-releases too."),
        click.option(
            "--find-links", multiple=True, metavar="PLACE", help="Look for wheels here too: a folder or page."
        ),
        click.option("--extra-index-url", multiple=True, metavar="URL", help="Look in this index too."),
        click.option("--index-url", metavar="URL", help="Look in this index instead of pip's own."),
    ):
        command = option(command)
    return command


def sources(index_url: str | None, extra_index_url: Iterable[str], find_links: Iterable[str], pre: bool) -> Sources:
    """Take the options; a folder that is not there is refused, which pip would pass over."""
    from modularbase_core.packs.pip import Sources

    places = []
    for place in find_links:
        if "://" not in place and not Path(place).expanduser().exists():
            raise click.BadParameter(f"{place!r} does not exist; name a folder or a page", param_hint="--find-links")
        places.append(place if "://" in place else str(Path(place).expanduser().absolute()))
    return Sources(index_url=index_url, extra_index_urls=tuple(extra_index_url), find_links=tuple(places), pre=pre)


def pip_of(quiet: bool) -> Pip:
    """Return this environment's pip; its own progress is shown on a terminal."""
    from modularbase_core.packs.pip import Pip

    return Pip(shown=not quiet and sys.stderr.isatty())


def fetch_weights(packs: Iterable[InstalledPack], store: Path, *, quiet: bool) -> tuple[list[str], list[str]]:
    """Fetch what the packs lack; return the names of the fetched files, and a sentence for each that failed."""
    from modularbase_core.packs.fetch import fetch, missing

    fetched, faults = [], []
    with byte_bar(quiet=quiet) as progress:
        for one in packs:
            try:
                for download in missing(one.pack):
                    fetch(download, store, progress)
                    fetched.append(download.name)
            except ModularBaseError as error:
                faults.append(str(error))
    return fetched, faults
