"""Distill: a student learns from a teacher, word by word from its logits, or from responses that it writes.

Where both read the same tokens the divergence from the teacher's next words is the loss, asked step by step; else the
teacher answers the mix's prompts once, and the student learns these answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.text.controls import Controls, controls_of, template_beside
from modularbase_core.train.checkpoints import build_model
from modularbase_core.train.installed import Installed
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.learn import learn
from modularbase_core.train.material import documents_of
from modularbase_core.train.parallel import first_process
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.references import base_called, pack_called
from modularbase_core.train.soft_loss import SoftLoss, Top
from modularbase_core.train.teachers.answers import ANSWERS_FILE, Answers, awaited, prompts_of, today
from modularbase_core.train.teachers.chat_api import ChatApi
from modularbase_core.train.teachers.huggingface import HuggingFaceTeacher, same_tokens
from modularbase_core.train.teachers.pair import PairTeacher
from modularbase_core.train.tokens import load_tokenizer, read_tokenizer, recipe_controls


class Local(Protocol):
    """A teacher that runs here."""

    def top(self, ids: Tensor, rows: Tensor) -> Top:
        """Return the likeliest tokens at `rows` [n] of `ids` [W, N]."""

    def write(self, prompts: Sequence[str], seed: int) -> list[str]:
        """Answer prompts together."""


def run_distill(recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed) -> None:
    """Train the student; an interrupted run goes on from its teacher's answers and from `checkpoint`."""
    assert recipe.teacher is not None
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe)
    controls = recipe_controls(recipe, tokenizer)
    model = build_model(recipe, runs, controls.border, installed)
    file: Path | None = None
    teacher: Local | None = None
    if recipe.teacher.kind == "openai":
        file = ask_service(recipe, data=data, runs=runs, quiet=quiet)
    else:
        size = model.base.embedding.num_embeddings
        teacher, alike = _local(recipe, size, tokenizer, controls, runs, installed)
        if recipe.teacher.mode == "logits" and not alike:
            raise ConfigError(
                f"recipe {recipe.name!r}: teacher.mode is 'logits', but teacher and student read other tokens; "
                "use 'text'"
            )
        if recipe.teacher.mode == "text" or not alike:
            file = _ask_local(recipe, teacher, data=data, runs=runs, quiet=quiet)
            teacher = None
    material = documents_of(recipe if file is None else mix_of_answers(recipe, file), data, tokenizer)
    learn(recipe, model, _loss(recipe, model, teacher), material, controls.border, checkpoint, quiet=quiet)


def _loss(recipe: Recipe, model: Whole, teacher: Local | None) -> Loss:
    """Return the divergence from a teacher, or without one the likelihood of what it wrote."""
    settings = recipe.teacher
    assert settings is not None
    if teacher is None:
        return Loss(
            model, compiled=recipe.compile, precision=recipe.precision, balance=recipe.balance, z_loss=recipe.z_loss
        )
    return SoftLoss(
        model,
        teacher.top,
        weight=settings.weight,
        temperature=settings.temperature,
        compiled=recipe.compile,
        precision=recipe.precision,
        balance=recipe.balance,
        z_loss=recipe.z_loss,
    )


def ask_service(recipe: Recipe, *, data: Path, runs: Path, quiet: bool, key: str | None = None) -> Path:
    """Have the service answer the mix's prompts; return the file of answers.

    key: what it is to be asked with. Raises ConfigError for a recipe that needs one while answers are missing.
    """
    teacher = recipe.teacher
    assert teacher is not None
    every, path = prompts_of(recipe, teacher, data), runs / recipe.name / ANSWERS_FILE
    answers = Answers(path) if first_process() else awaited(path, every)
    missing = sum(one not in answers for one in every)
    if missing and teacher.key_variable and not key:
        raise ConfigError(
            f"recipe {recipe.name!r}: {missing} of {len(every)} answers of {teacher.model!r} are missing, and there is "
            f"no key to ask with; set {teacher.key_variable} and run `modularbase train distill`"
        )
    if missing:
        ChatApi(teacher, key).answer(every, answers, quiet=quiet)
    return answers.take(every)


def _ask_local(recipe: Recipe, teacher: Local, *, data: Path, runs: Path, quiet: bool) -> Path:
    """Have a teacher that runs here answer the mix's prompts, a group at a time; return the file of answers."""
    settings = recipe.teacher
    assert settings is not None
    every, path = prompts_of(recipe, settings, data), runs / recipe.name / ANSWERS_FILE
    answers = Answers(path) if first_process() else awaited(path, every)
    told = {"source": settings.kind, "model": settings.model or f"{settings.base} + {settings.pack}"}
    starts = range(0, len(every), settings.group)
    groups = [every[first : first + settings.group] for first in starts]
    done = sum(one in answers for one in every)
    with tqdm(total=len(every), initial=done, unit="answer", disable=quiet, mininterval=5.0) as bar:
        for number, group in enumerate(groups):
            if missing := [one for one in group if one not in answers]:
                # the whole group again, for what is drawn depends on who is asked together
                said = teacher.write([one.prompt for one in group], recipe.seed + number)
                for one, response in zip(group, said, strict=True):
                    if one in missing:
                        answers.add(one, response, **told, date=today())
                bar.update(len(missing))
    return answers.take(every)


def _local(
    recipe: Recipe, size: int, tokenizer: Tokenizer, controls: Controls, runs: Path, installed: Installed
) -> tuple[Local, bool]:
    """Load the teacher of a student that knows `size` tokens; tell whether it reads the same ones."""
    settings = recipe.teacher
    assert settings is not None
    if settings.kind == "huggingface":
        folder = recipe.folder / settings.model
        teacher = HuggingFaceTeacher(folder, settings, border=controls.border, vocabulary=size)
        return teacher, same_tokens(tokenizer, folder)
    where = f"recipe {recipe.name!r}: teacher"
    base, one = base_called(f"{where}.base", settings.base, recipe, runs, installed)
    pack = pack_called(f"{where}.pack", settings.pack, recipe, runs, installed)
    if pack.input_adapter.in_features != base.embedding.embedding_dim:
        raise DataError(
            f"{where}.pack {settings.pack!r} takes hidden states {pack.input_adapter.in_features} wide, but "
            f"{settings.base!r} gives {base.embedding.embedding_dim}; name a pack of that base"
        )
    alike = base.embedding.num_embeddings == size  # a run is taken to read what its student reads
    if one is not None:
        own = read_tokenizer(one.pack.tokenizer)
        alike = own.get_vocab() == tokenizer.get_vocab()
        if not alike:
            tokenizer, controls = own, controls_of(own, template_beside(one.pack.tokenizer), str(one.pack.tokenizer))
    model = Whole(base, pack, controls.border, frozen_base=True).eval().requires_grad_(False)
    return PairTeacher(model, tokenizer, controls, settings, size), alike


def mix_of_answers(recipe: Recipe, file: Path) -> Recipe:
    """Return the recipe with the teacher's answers as its mix, beside the mix's own words by what weight is left."""
    assert recipe.teacher is not None
    share = recipe.teacher.weight
    total = sum(source.tokens for source in recipe.mix)
    answers = Source(files=(str(file.resolve()),), tokens=max(1, round(recipe.tokens * share)))
    rest = recipe.tokens * (1 - share)
    own = (
        tuple(replace(one, tokens=max(1, round(rest * one.tokens / total))) for one in recipe.mix) if share < 1 else ()
    )
    return replace(recipe, mix=(answers, *own))
