"""Take a checkpoint apart into a distribution of base, router and general chat, whole or not at all."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.device.weights import stream_weights, write_weights
from modularbase_core.errors import ConfigError, TokenizerError, WeightsError
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.sdk.jsonfile import read_json
from modularbase_core.sdk.manifest import (
    ROUTING_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    write_manifest,
)
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.template import ChatTemplate, read_template, template_text
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.train.pretrained.checkpoint import open_checkpoint
from modularbase_core.train.pretrained.config import divide, read_config
from modularbase_core.train.pretrained.first_router import first_router, ordinary_messages, router_shape, understood
from modularbase_core.train.pretrained.layers import ADAPTERS, Sources, check_tensors
from modularbase_core.train.pretrained.project import PACKS, VERSION, Names, licence_of, write_project
from modularbase_core.train.pretrained.wording import Vocabulary, read_wording

Progress = Callable[[str, int, int], None]

_TOKENIZER_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to take a checkpoint apart. form: of the weights, see `config.FORMS`; window_tokens: None for the usual.

    template: a template.json to use instead of the checkpoint's own chat template.
    """

    name: str
    understanding_layers: int = 4
    fusion_layers: int = 2
    form: str = "fp16"
    window_tokens: int | None = None
    template: Path | None = None


def decompose(directory: Path, out: Path, wanted: Wanted, progress: Progress | None = None) -> dict[str, Manifest]:
    """Write the distribution of the checkpoint in `directory` to `out`; return its packs' manifests by their folders.

    Everything is checked before anything is written, and `out` is there whole or not at all. Raises ConfigError when
    `out` is there already, and else ArchitectureError, WeightsError or TokenizerError, one sentence.
    """
    names = Names(wanted.name)
    if out.exists():
        raise ConfigError(f"{out} is there already; name a new folder, or remove it")
    described = read_config(directory)
    base, pack = divide(
        described,
        understanding_layers=wanted.understanding_layers,
        fusion_layers=wanted.fusion_layers,
        window_tokens=wanted.window_tokens,
    )
    checkpoint = open_checkpoint(directory)
    check_tensors(checkpoint, described, directory)
    words = _words(directory, wanted.template, described.vocabulary_size)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        packs = part / names.module
        packs.mkdir(parents=True)
        manifests = _Writer(
            packs, names, Sources(checkpoint, base, pack), licence_of(directory), wanted.form, progress
        ).write(words)
        write_project(part, names, directory, manifests, form=wanted.form)
        part.replace(out)
    except OSError as error:
        raise WeightsError(f"{out} cannot be written ({error.strerror}); free space or write elsewhere") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifests


@dataclass(frozen=True, slots=True)
class _Words:
    """The texts of tokenizer.json and template.json."""

    tokenizer: str
    template: str


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the pack directories into the folder `packs`."""

    packs: Path
    names: Names
    sources: Sources
    licence: str
    form: str
    progress: Progress | None

    def write(self, words: _Words) -> dict[str, Manifest]:
        base, pack = self.sources.base, self.sources.pack
        self._tell("base", 0)
        self._weights("base", base)
        for file, text in ((TOKENIZER_FILE, words.tokenizer), (TEMPLATE_FILE, words.template)):
            (self.packs / "base" / file).parent.mkdir(exist_ok=True)
            (self.packs / "base" / file).write_text(text, encoding="utf-8")
        tokenizer = Tokenizer.load(
            self.packs / "base" / TOKENIZER_FILE, read_template(self.packs / "base" / TEMPLATE_FILE)
        )
        self._tell("general chat", 1)
        self._weights("general_chat", pack)
        self._tell("router", 2)
        shape = router_shape(base.blocks.hidden_size)
        weights, background = first_router(understood(self.sources, tokenizer, ordinary_messages()), shape)
        (self.packs / "router").mkdir()
        write_weights(self.packs / "router" / WEIGHTS_FILE, weights, form="fp32")
        write_weights(self.packs / "router" / ROUTING_FILE, background, form="fp32")
        common: dict[str, Any] = {"version": VERSION, "licence": self.licence}
        over = {**common, "base": self.names.id, "base_compatibility": (VERSION.rpartition(".")[0],)}
        described = (
            Manifest(
                id=self.names.id,
                type="base",
                architecture=base,
                description=f"Embedding, first {base.understanding_layers} and last {base.fusion_layers} layers, head.",
                **common,
            ),
            Manifest(
                id=self.names.router,
                type="router",
                architecture=shape,
                description="Compares messages by the average of their words; not trained.",
                **over,
            ),
            Manifest(
                id=self.names.chat,
                type="system",
                architecture=pack,
                description=f"The {pack.layers} layers in the middle.",
                **over,
            ),
        )
        written = {name: write_manifest(self.packs / name, one) for name, one in zip(PACKS, described, strict=True)}
        self._tell("done", 3)
        return written

    def _weights(self, name: str, architecture: BaseArchitecture | PackArchitecture) -> None:
        stream_weights(
            self.packs / name / WEIGHTS_FILE,
            parameter_shapes(architecture),
            self.sources.rows,
            form=self.form,
            exact=ADAPTERS,
        )

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(f"writing {what}" if done < len(PACKS) else what, done, len(PACKS))


def _words(directory: Path, template: Path | None, vocabulary_size: int) -> _Words:
    """Read tokenizer and chat template; what the template uses is marked as special, so that nobody can type it."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{directory} holds no tokenizer.json; save its tokenizer with `save_pretrained`")
    value = read_json(path, _TOKENIZER_LIMIT_BYTES, TokenizerError)
    vocabulary = _vocabulary(value, path)
    if vocabulary.largest >= vocabulary_size:
        raise TokenizerError(
            f"{path} has token ids up to {vocabulary.largest}, but the checkpoint's vocab_size is {vocabulary_size}; "
            "take both from one checkpoint"
        )
    read = read_template(template) if template is not None else read_wording(directory, vocabulary)
    text = "\n".join(_strings(read))
    for token in value["added_tokens"]:
        token["special"] = token["special"] is True or token["content"] in text
    return _Words(json.dumps(value, ensure_ascii=False), template_text(read))


# Any: whatever JSON held
def _vocabulary(value: Any, path: Path) -> Vocabulary:
    try:
        added = {token["id"]: (token["content"], token["special"]) for token in value["added_tokens"]}
        ids = [*value["model"]["vocab"].values(), *added]
        special = {number: content for number, (content, is_special) in sorted(added.items()) if is_special is True}
        if not all(type(one) is int for one in ids) or not all(isinstance(one, str) for one in special.values()):
            raise TypeError("an id is no number")
        return Vocabulary(special, max(ids))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokenizerError(
            f"{path} is no tokenizer of the tokenizers library ({error}); download it again"
        ) from error


def _strings(template: ChatTemplate) -> list[str]:
    around = [*template.roles.values(), template.document]
    return [template.begin, *template.stops, *(text for one in around for text in (one.open, one.close))]
