"""A teacher in Hugging Face's format: any causal language model in a folder, run by `transformers`."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.train.recipe import Teacher
from modularbase_core.train.soft_loss import Top, top_of_logits

CHUNK_ROWS: Final = 256
BATCH_TOKENS: Final = 16384
"""Padding included, that the teacher reads at once."""
_CLOSE: Final = 2e-2


class HuggingFaceTeacher:
    """A causal language model; folder: config.json, weights and tokenizer.

    border: what each of the student's documents begins with; vocabulary: how many tokens the student's head knows.
    Raises ConfigError without `transformers`, DataError for a folder that it cannot load.
    """

    # Any, here: transformers is imported only when it is asked for
    def __init__(self, folder: Path, settings: Teacher, *, border: int, vocabulary: int) -> None:
        self._settings, self._border = settings, border
        transformers = load_library()
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder} holds no config.json; name the folder of a model in Hugging Face's format")
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        try:
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            line = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{folder} cannot be loaded as a causal language model ({line}); check its files"
            ) from error
        self._model.to(dtype).eval().requires_grad_(False)
        self._vocabulary = min(vocabulary, self._model.get_output_embeddings().weight.shape[0])
        self._apart: bool | None = None

    @torch.no_grad()
    def top(self, ids: Tensor, rows: Tensor) -> Top:
        """Return the likeliest tokens at `rows` [n] of `ids` [W, N]; each document is read by itself."""
        self._model.to(ids.device)
        settings, flat = self._settings, ids.flatten()
        documents = _documents(ids, self._border)
        count = min(settings.top_k, self._vocabulary)
        shares = torch.zeros(len(rows), count, device=ids.device)
        tokens = torch.zeros(len(rows), count, dtype=torch.int64, device=ids.device)
        place = torch.full((flat.numel(),), -1, device=ids.device)
        place[rows] = torch.arange(len(rows), device=ids.device)
        for some in _batches([one for one in documents if (place[one[0] : one[1]] >= 0).any()]):
            longest = max(end - first for first, end in some)
            padded = torch.zeros(len(some), longest, dtype=torch.int64, device=ids.device)
            wanted = torch.full((len(some), longest), -1, device=ids.device)
            mask = torch.zeros_like(padded)
            for row, (first, end) in enumerate(some):
                padded[row, : end - first], wanted[row, : end - first] = flat[first:end], place[first:end]
                mask[row, : end - first] = 1
            at = torch.nonzero(wanted.flatten() >= 0).flatten()
            for part, logits in self._logits(padded, mask, at):
                top = top_of_logits(logits, count, settings.temperature)
                to = wanted.flatten()[part]
                shares[to], tokens[to] = top.shares, top.tokens
        return Top(shares, tokens)

    @torch.no_grad()
    def write(self, prompts: Sequence[str], seed: int) -> list[str]:
        """Answer prompts together, by the model's own chat template if it has one."""
        tokenizer, settings = self._tokenizer, self._settings
        torch.manual_seed(seed)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        tokenizer.padding_side = "left"
        texts = [self._opened(prompt) for prompt in prompts]
        own = not tokenizer.chat_template  # a template writes the special tokens itself
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=own)
        given = {name: value.to(self._model.device) for name, value in given.items() if name != "token_type_ids"}
        draws: dict[str, bool | float] = {"do_sample": False}
        if settings.sampling_temperature:
            draws = {"do_sample": True, "temperature": settings.sampling_temperature, "top_k": 0, "top_p": 1.0}
        made = self._model.generate(
            **given, max_new_tokens=settings.longest, pad_token_id=tokenizer.pad_token_id, **draws
        )
        said = made[:, given["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]

    def _opened(self, prompt: str) -> str:
        system = self._settings.system
        if not self._tokenizer.chat_template:
            return f"{system}\n\n{prompt}\n" if system else f"{prompt}\n"
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def _logits(self, ids: Tensor, mask: Tensor, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (some of `at`, their logits [n, V]) of `ids` [B, L], a few rows at a time."""
        if self._apart is None:
            self._apart = self._works_apart(ids[:1, :16], mask[:1, :16])
        if self._apart:
            head = self._model.get_output_embeddings()
            hidden = self._body(ids, mask).flatten(0, 1)
            for part in torch.split(at, CHUNK_ROWS):
                yield part, head(hidden[part])[:, : self._vocabulary]
            return
        length = ids.shape[1]
        for row in range(len(ids)):  # whole logits, of one document at a time
            own = at[(at >= row * length) & (at < (row + 1) * length)]
            if len(own):
                logits = self._model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1]).logits[0]
                yield own, logits[own - row * length, : self._vocabulary]

    def _works_apart(self, ids: Tensor, mask: Tensor) -> bool:
        """Tell whether the logits are the head's of the body's last states; some models bend or scale them."""
        body, head = self._model.base_model, self._model.get_output_embeddings()
        if not isinstance(head, nn.Module) or body is self._model:
            return False
        wanted = self._model(input_ids=ids, attention_mask=mask).logits.float()
        made = head(self._body(ids, mask)).float()
        return bool((wanted - made).abs().max() <= _CLOSE * wanted.abs().max())

    def _body(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self._model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states


def load_library() -> Any:
    """Import `transformers`; raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"a teacher of kind 'huggingface' needs transformers ({error}); run `pip install 'transformers>=4.51'`"
        ) from error


def same_tokens(tokenizer: Tokenizer, folder: Path) -> bool:
    """Tell whether a model's folder brings the same vocabulary as `tokenizer`, so that their logits can be compared."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    try:
        other = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of damage
        raise DataError(f"cannot read {path} ({error}); fix it, or set teacher.mode = 'text'") from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary == other.get_vocab()


def _documents(ids: Tensor, border: int) -> list[tuple[int, int]]:
    """Return (first, end) of each document in the windows `ids` [W, N], counted through all of them."""
    begins = ids == border
    begins[:, 0] = True
    firsts = torch.nonzero(begins.flatten()).flatten().tolist()
    return list(itertools.pairwise([*firsts, ids.numel()]))


def _batches(documents: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield documents of like lengths together, BATCH_TOKENS at most with what fills the shorter ones up."""
    waiting: list[tuple[int, int]] = []
    for one in sorted(documents, key=lambda one: one[0] - one[1]):
        longest = waiting[0][1] - waiting[0][0] if waiting else 0
        if waiting and longest * (len(waiting) + 1) > BATCH_TOKENS:
            yield waiting
            waiting = []
        waiting.append(one)
    if waiting:
        yield waiting
