"""Choose the next token of one sequence from its logits.

Decides the order (penalties, temperature, top-k, top-p, min-p) and how ties fall: to the lower id, always.
Stop strings and stop ids are carried in `SamplingConfig` but honoured by `text.stream` and `engine.scheduler`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.errors import ConfigError

Logits = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How tokens are chosen and when generation ends.

    temperature: 0 is greedy, the most likely token. top_k: keep so many tokens, 0 keeps all. top_p: keep the
    smallest set whose probability reaches it (Holtzman et al., 2020), at least one. min_p: drop what is less
    likely than this share of the most likely token. repetition_penalty: over prompt and answer (CTRL, Keskar et
    al., 2019), 1 is none. presence_penalty, frequency_penalty: over the answer, as in OpenAI's API. seed: None
    draws a fresh one. stop: strings that end the answer and are not part of it. max_tokens: of the answer.
    logprobs: report the chosen token's and so many most likely ones; None reports nothing.

    Raises ConfigError naming the first value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int = 512
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, math.inf)
        _whole("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0, 1)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf)
        if self.repetition_penalty == 0:
            raise ConfigError("repetition_penalty is 0; use a number above 0, 1 for none")
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; use a tuple of strings, none of them empty")
        if not isinstance(self.stop_token_ids, tuple):
            raise ConfigError(f"stop_token_ids is {self.stop_token_ids!r}; use a tuple of token ids")
        for token_id in self.stop_token_ids:
            _whole("stop_token_ids", token_id, 0)
        _whole("max_tokens", self.max_tokens, 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token.

    logprob, top: natural logarithms under the model's own distribution, the softmax of the logits before
    penalties, temperature and any cut, whatever was drawn from. top: (id, logprob), most likely first, as many
    as asked for, forbidden tokens left out. Without `SamplingConfig.logprobs`, None and ().
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


PENALISED_TOKENS: Final = 64
"""The last tokens that a repetition penalty reaches, as in llama.cpp: in a long conversation all words were said, and
those alone would be left unpenalised that have nothing to do with it."""


class Sampler:
    """Draws the tokens of one sequence with a generator of its own, so that batch mates change nothing.

    The same seed, prompt and logits give the same tokens: one uniform number is drawn per token, none if greedy.
    """

    def __init__(self, config: SamplingConfig, prompt: Iterable[int] = ()) -> None:
        self._config = config
        self._random = np.random.Generator(np.random.PCG64(config.seed))
        self._seen = deque(prompt if config.repetition_penalty != 1 else (), maxlen=PENALISED_TOKENS)
        self._count: dict[int, int] = {}  # token id: times generated

    def sample(self, logits: Logits) -> Sampled:
        """Choose from `logits` [V], left unchanged, and remember the choice for the penalties.

        -inf forbids a token. Raises FloatingPointError on NaN, +inf or when every token is forbidden: that is a
        fault of the model or a kernel.
        """
        best = int(np.argmax(logits))
        if not math.isfinite(logits[best]):  # argmax stops at NaN, so one look at the maximum finds every fault
            raise FloatingPointError(
                f"the logits of {logits.shape[-1]} tokens have the maximum {logits[best]} at token {best}; "
                "a weight or kernel is broken"
            )
        config = self._config
        scores = self._penalised(logits)
        if config.temperature == 0:
            token_id = best if scores is logits else int(np.argmax(scores))
        else:
            token_id = _draw(*_survivors(scores, config), self._random.random())
        self._remember(token_id)
        if config.logprobs is None:
            return Sampled(token_id)
        return _with_logprobs(logits, token_id, config.logprobs)

    def _penalised(self, logits: Logits) -> Logits:
        config = self._config
        scores = logits
        if self._seen:
            seen = set(self._seen)
            ids = np.fromiter(seen, np.int64, len(seen))
            scores = logits.astype(np.float64)
            old = scores[ids]
            scores[ids] = np.where(old > 0, old / config.repetition_penalty, old * config.repetition_penalty)
        if self._count:
            ids = np.fromiter(self._count.keys(), np.int64, len(self._count))
            times = np.fromiter(self._count.values(), np.float64, len(self._count))
            scores = logits.astype(np.float64) if scores is logits else scores
            scores[ids] -= config.presence_penalty + config.frequency_penalty * times
        return scores

    def _remember(self, token_id: int) -> None:
        if self._config.repetition_penalty != 1:
            self._seen.append(token_id)
        if self._config.presence_penalty or self._config.frequency_penalty:
            self._count[token_id] = self._count.get(token_id, 0) + 1


def _survivors(scores: Logits, config: SamplingConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids that temperature, top-k, top-p and min-p leave, and their weights, not normalised.

    Each cut works on the renormalised rest of the one before. Most likely first if anything was sorted, else by id.
    """
    cut = 0 < config.top_k < scores.size
    ids = _most_likely(scores, config.top_k) if cut else np.arange(scores.size)
    kept = (scores[ids] if cut else scores).astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        weights = np.exp((kept - float(kept.max())) / config.temperature)  # after top-k: it keeps the order
    if config.top_p < 1:
        ids, weights = _nucleus(scores, ids, weights, config.top_p)
    if config.min_p > 0:
        likely = weights >= config.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _most_likely(scores: Logits, count: int) -> NDArray[np.int64]:
    """Return the ids of the `count` highest scores, highest first, the lower id first among equals."""
    if count < scores.size:
        threshold = np.partition(scores, scores.size - count)[scores.size - count]
        above = np.flatnonzero(scores > threshold)
        ids = np.concatenate([above, np.flatnonzero(scores == threshold)[: count - above.size]])
    else:
        ids = np.arange(scores.size)
    order: NDArray[np.int64] = ids[np.lexsort((ids, -scores[ids]))]
    return order


def _nucleus(
    scores: Logits, ids: NDArray[np.int64], weights: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keep the shortest run of the most likely whose share reaches `top_p`, at least one.

    Sorting 64K tokens takes milliseconds, the run is mostly short: sort the first 64, then 8 times as many.
    """
    total, size = float(weights.sum()), 64
    sorted_already = ids.size < scores.size
    while True:
        size = min(size, ids.size)
        first = ids[:size] if sorted_already else _most_likely(scores, size)
        chosen = weights[:size] if sorted_already else weights[first]
        reached = np.cumsum(chosen)
        count = int(np.searchsorted(reached, top_p * total)) + 1
        if count <= size or size == ids.size:
            return first[:count], chosen[:count]
        size *= 8


def _draw(ids: NDArray[np.int64], weights: NDArray[np.float64], uniform: float) -> int:
    """Invert the cumulative weights at `uniform` in [0, 1); a weight of 0 is never drawn."""
    reached = np.cumsum(weights)
    place = int(np.searchsorted(reached, uniform * reached[-1], side="right"))
    if place == ids.size:  # the product was rounded up to the sum
        place = int(np.searchsorted(reached, reached[-1]))
    return int(ids[place])


def _with_logprobs(logits: Logits, token_id: int, count: int) -> Sampled:
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - math.log(float(np.exp(shifted).sum()))
    top = [(int(i), float(logprobs[i])) for i in _most_likely(logits, count)] if count else []
    return Sampled(token_id, float(logprobs[token_id]), tuple(pair for pair in top if pair[1] > -math.inf))


def _number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or math.isinf(value):
        allowed = f"a number from {low} to {high}" if high < math.inf else f"a number from {low} up"
        raise ConfigError(f"{name} is {value!r}; use {allowed}")


def _whole(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}; use a whole number from {low} up")
