"""A teacher of our own kind: a base and a pack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from modularbase_core.text.controls import Controls
from modularbase_core.train.encoding import Encoder
from modularbase_core.train.language import Whole
from modularbase_core.train.packing import document_mask
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Teacher
from modularbase_core.train.soft_loss import Top, top_of_logits

CHUNK_ROWS = 256


class PairTeacher:
    """A base and a pack, as one `model`, that answer.

    tokenizer, controls: as the base reads and writes conversations. vocabulary: how many tokens the student's head
    knows.
    """

    def __init__(
        self, model: Whole, tokenizer: Tokenizer, controls: Controls, settings: Teacher, vocabulary: int
    ) -> None:
        self._model = model
        self._tokenizer, self._controls, self._settings = tokenizer, controls, settings
        self._encoder = Encoder(tokenizer, response_only=True, controls=controls)
        self._vocabulary = vocabulary
        self._window = 16 * model.base.understanding.rotary.shape[0]

    @torch.no_grad()
    def top(self, ids: Tensor, rows: Tensor) -> Top:
        """Return the likeliest tokens at `rows` [n] of `ids` [W, N]; it moves to where the ids are."""
        model = self._model.to(ids.device)
        features, weight = model(ids, document_mask(ids, model.begin))[rows], model.head_weight()[: self._vocabulary]
        settings = self._settings
        parts = [
            top_of_logits(part @ weight.T, settings.top_k, settings.temperature) for part in features.split(CHUNK_ROWS)
        ]
        return Top(torch.cat([one.shares for one in parts]), torch.cat([one.tokens for one in parts]))

    @torch.no_grad()
    def write(self, prompts: Sequence[str], seed: int) -> list[str]:
        """Answer prompts together, each as the first message of a conversation; a seed gives the same answers again.

        There is no cache here, every step reads everything again; a large model that writes much is better served by
        its own engine, and asked as a teacher of kind openai.
        """
        random = torch.Generator().manual_seed(seed)
        texts = [self._opened(prompt) for prompt in prompts]
        said: list[list[int]] = [[] for _ in texts]
        unfinished = list(range(len(texts)))
        while unfinished:
            for one, token in zip(unfinished, self._next([texts[one] for one in unfinished], random), strict=True):
                texts[one].append(token)
                said[one].append(token)
            unfinished = [one for one in unfinished if not self._ended(said[one], texts[one])]
        stops = self._controls.stops
        return [self._tokenizer.decode([one for one in ids if one not in stops]).strip() for ids in said]

    def _opened(self, prompt: str) -> list[int]:
        """Return a conversation up to where the answer begins; of one too long for the window, its end."""
        messages = [{"role": "user", "content": prompt}]
        if self._settings.system:
            messages.insert(0, {"role": "system", "content": self._settings.system})
        ids, _ = self._encoder.encode(Record(None, tuple(messages), "", ""))
        ids += self._controls.opening["assistant"]
        room = max(2, self._window - self._settings.longest)
        return ids if len(ids) <= room else [ids[0], *ids[1 - room :]]

    def _next(self, texts: Sequence[Sequence[int]], random: torch.Generator) -> list[int]:
        device = self._model.head_weight().device
        longest = max(map(len, texts))
        # padding comes last and attention is causal, so what it holds changes nothing
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
        mask = torch.ones(longest, longest, dtype=torch.bool, device=device).tril().expand(len(texts), 1, -1, -1)
        last = torch.tensor([row * longest + len(text) - 1 for row, text in enumerate(texts)], device=device)
        logits = (self._model(ids, mask)[last] @ self._model.head_weight().T).cpu()
        if not self._settings.sampling_temperature:
            return [int(one) for one in logits.argmax(1)]
        shares = (logits / self._settings.sampling_temperature).softmax(1)
        return [int(one) for one in torch.multinomial(shares, 1, generator=random)[:, 0]]

    def _ended(self, said: Sequence[int], text: Sequence[int]) -> bool:
        full = len(said) >= self._settings.longest or len(text) >= self._window
        return full or said[-1] in self._controls.stops
