"""The tokenizer that a command is given, a file or an installed pack, and the chat template that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modularbase_core.cli.settings import installed, read_settings
from modularbase_core.errors import PackError, TokenizerError

if TYPE_CHECKING:
    import tokenizers

    from modularbase_core.text.controls import Controls


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tokenizer with the ids of its template; name: what it was called."""

    name: str
    tokenizer: tokenizers.Tokenizer
    controls: Controls


def choose_tokenizer(word: str, config_file: Path | None, cache_dir: Path | None) -> Chosen:
    """Load the tokenizer.json that `word` names, or else an installed pack's; raises TokenizerError and PackError."""
    path = Path(word)
    if path.is_file():
        return _load(word, path)
    if path.suffix == ".json" or len(path.parts) > 1:
        raise TokenizerError(f"the tokenizer {word} does not exist; name a tokenizer.json or an installed pack")
    catalog, _ = installed(read_settings(config_file, cache_dir))
    one = catalog.find(word)
    base = one if one.manifest.type == "base" else catalog.find(one.manifest.base or "")
    return _load(base.id, base.pack.tokenizer)


def only_base(config_file: Path | None, cache_dir: Path | None) -> Chosen | None:
    """Load the tokenizer of the base that chat would take; None where there is none or more than one."""
    from modularbase_core.packs.resolve import line_up

    config = read_settings(config_file, cache_dir)
    try:
        base = line_up(installed(config)[0], config.base).base
        return _load(base.id, base.pack.tokenizer)
    except (PackError, TokenizerError):
        return None


def _load(name: str, path: Path) -> Chosen:
    import tokenizers

    from modularbase_core.text.controls import controls_of, template_beside

    try:
        library: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of damage
        raise TokenizerError(f"cannot read the tokenizer {path} ({error}); name another") from error
    return Chosen(name, library, controls_of(library, template_beside(path), name))
