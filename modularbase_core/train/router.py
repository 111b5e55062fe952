"""Train the router: messages to queries, by contrast over intents and over domains.

Contrast with proxies and a temperature (Movshovitz-Attias et al., 2017). It learns no packs: one that arrives later
needs only its examples (`packs.keys`).
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Router
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import PAGE_TOKENS, RouterArchitecture, routed_part
from modularbase_core.text.controls import Controls
from modularbase_core.train.checkpoints import load_base, load_weights
from modularbase_core.train.installed import Installed
from modularbase_core.train.logs import Progress, open_logs
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.record import plain
from modularbase_core.train.saving import check_keys, keys_of, read_checkpoint, write_checkpoint
from modularbase_core.train.tokens import controls_in, load_tokenizer, recipe_controls

MESSAGE_TOKENS = 512
"""Of a longer message, or one that the base's window does not hold, the rest is not read; the router reads the
beginning and the end of this."""
TEMPERATURE = 0.07
DOMAIN_TEMPERATURE = 0.1
INTENT_SHARE = 0.5
"""Weight of the contrast over intents beside that over domains: it keeps queries open to domains yet unknown."""
DROPPED_ROWS = 0.25
"""Share of a message's rows that a step leaves out, so that no single word decides."""
TRAINED_ROWS = 40
QUERY_BATCH = 256
_ROWS = 8192  # of a call


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the router reads of messages, end to end: message m owns the rows begin[m] .. begin[m+1].

    rows: [n, E] float16 hidden states; tokens: [n] int32.
    """

    rows: Tensor
    tokens: Tensor
    begin: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.begin) - 1

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return hidden [T, E] float32, tokens [T], starts [B], lengths [B] of some messages."""
        return self._of([(int(self.begin[m]), int(self.begin[m + 1])) for m in chosen])

    def sample(self, chosen: NDArray[np.int64], random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return as `batch` does, of each message a stretch of at most TRAINED_ROWS, without the rows left out."""
        spans = []
        for m in chosen:
            first, last = int(self.begin[m]), int(self.begin[m + 1])
            first += int(random.integers(0, max(0, last - first - TRAINED_ROWS) + 1))
            spans.append((first, min(last, first + TRAINED_ROWS)))
        hidden, tokens, starts, lengths = self._of(spans)
        kept = torch.from_numpy(random.random(len(tokens)) >= DROPPED_ROWS)
        kept[starts.long()] = True  # none is left empty
        owner = torch.repeat_interleave(torch.arange(len(spans)), lengths)[kept]
        lengths = torch.bincount(owner, minlength=len(spans)).to(torch.int32)
        return hidden[kept], tokens[kept], (lengths.cumsum(0) - lengths).to(torch.int32), lengths

    def _of(self, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lengths = torch.tensor([last - first for first, last in spans], dtype=torch.int32)
        hidden = torch.cat([self.rows[first:last] for first, last in spans]).float()
        tokens = torch.cat([self.tokens[first:last] for first, last in spans])
        return hidden, tokens, (lengths.cumsum(0) - lengths).to(torch.int32), lengths


@torch.no_grad()
def understand_messages(
    base: Base, tokenizer: Tokenizer, texts: Sequence[str], *, quiet: bool, controls: Controls | None = None
) -> Hidden:
    """Run user messages through the understanding layers, each as the first of a conversation.

    controls: the ids of another chat template than ours.
    """
    before = (controls or controls_in(tokenizer)).first
    longest = min(MESSAGE_TOKENS, len(base.understanding.rotary) * PAGE_TOKENS - len(before))
    ids = [tokenizer.encode(text).ids[:longest] or [before[-1]] for text in texts]
    alike = defaultdict(list)  # messages of one length need no mask
    for number, one in enumerate(ids):
        alike[len(one)].append(number)
    parts: list[Tensor] = [torch.empty(0)] * len(ids)
    read = [torch.tensor(routed_part(one), dtype=torch.int32) for one in ids]
    with tqdm(total=len(ids), unit="message", disable=quiet or not sys.stderr.isatty()) as bar:
        for length, numbers in alike.items():
            rows_each = len(before) + length
            count, chosen = max(1, _ROWS // rows_each), torch.tensor(routed_part(range(length))) + len(before)
            for first in range(0, len(numbers), count):
                some = numbers[first : first + count]
                tokens = torch.tensor([[*before, *ids[number]] for number in some])
                hidden = base.understand(tokens.flatten(), Windows(len(some)))
                rows = hidden.view(len(some), rows_each, -1)[:, chosen].half()
                for number, row in zip(some, rows, strict=True):
                    parts[number] = row
                bar.update(len(some))
    return Hidden(torch.cat(parts), torch.cat(read), np.cumsum([0, *map(len, parts)]))


def train_router(
    recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool, installed: Installed
) -> None:
    """Train the recipe's router over a frozen base and save it; `tokens` and `batch_tokens` count messages here."""
    if not isinstance(recipe.router, RouterArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: a router needs its [router] architecture")
    tokenizer = load_tokenizer(recipe)
    controls = recipe_controls(recipe, tokenizer)
    parts = [read_messages([source], data, recipe.folder, recipe.seed) for source in recipe.mix]
    messages = [message for part in parts for message in part]
    base = load_base(recipe, runs, installed).eval().requires_grad_(False)
    texts = [message.text for message in messages]
    hidden = understand_messages(base, tokenizer, texts, quiet=quiet, controls=controls)
    chance = np.concatenate(
        [
            np.full(len(part), source.share / len(part) if source.share else 1.0 / len(messages))
            for source, part in zip(recipe.mix, parts, strict=True)
        ]
    )
    fit_router(recipe, recipe.router, hidden, messages, chance, checkpoint, quiet=quiet)


def fit_router(
    recipe: Recipe,
    architecture: RouterArchitecture,
    hidden: Hidden,
    messages: Sequence[Labelled],
    chance: NDArray[np.float64],
    checkpoint: Path | None = None,
    *,
    quiet: bool,
    save_seconds: float = 240.0,
) -> Router:
    """Fit a router to messages with their hidden states, drawn in proportion to `chance`.

    checkpoint: where the fit is kept every `save_seconds`, at the end and on Ctrl-C, and from which it goes on with
    the bits of one that never stopped.
    """
    fit = RouterFit(recipe, architecture, messages)
    said = keys_of(recipe)
    if checkpoint is not None and checkpoint.exists():
        fit.load(read_checkpoint(checkpoint), said, checkpoint)
    edges = np.cumsum(chance / chance.sum())
    logs = open_logs(recipe.logs, checkpoint.parent, fit.step, plain(recipe)) if checkpoint is not None else []
    progress = Progress(recipe.steps, fit.step, logs, quiet=quiet, mean=fit.loss, unit="messages")
    saved, whole = time.monotonic(), True
    try:
        while fit.step < recipe.steps:
            whole = False  # until the rate has stepped too, the fit belongs to no step
            loss = fit.learn(hidden, edges)
            progress.step(fit.step, recipe.batch_tokens, loss, {"rate": fit.rate})
            fit.loss, whole = progress.mean, True
            if checkpoint is not None and time.monotonic() - saved > save_seconds:
                write_checkpoint(fit.state(said), checkpoint)
                saved = time.monotonic()
    finally:
        progress.close()
        if whole and checkpoint is not None:
            write_checkpoint(fit.state(said), checkpoint)
    return fit.router.eval()


class RouterFit:
    """A router on its way, with all that its next step depends on."""

    def __init__(self, recipe: Recipe, architecture: RouterArchitecture, messages: Sequence[Labelled]) -> None:
        torch.manual_seed(recipe.seed)
        self.router = Router(architecture)
        intents, self._intent = _numbered([f"{one.domain}:{one.intent}:{one.language}" for one in messages])
        domains, self._domain = _numbered([one.domain for one in messages])
        self._intents, self._count = intents, recipe.batch_tokens
        self._proxies = nn.Parameter(torch.randn(intents + domains, architecture.key_size))
        self._optimiser = torch.optim.AdamW(
            [*self.router.parameters(), self._proxies], lr=recipe.other_rate, weight_decay=0.01
        )
        self._rates = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser,
            recipe.other_rate,
            total_steps=recipe.steps,
            pct_start=0.1 if recipe.steps > 10 else 0.0,  # so few leave no step to warm up in
        )
        self._random = np.random.default_rng(recipe.seed)
        self.step = 0
        self.loss: float | None = None  # the running mean

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        return float(self._optimiser.param_groups[0]["lr"])

    def learn(self, hidden: Hidden, edges: NDArray[np.float64]) -> float:
        """Learn from one batch, drawn by the `edges` [messages] between the messages' chances; return the loss."""
        chosen = np.minimum(np.searchsorted(edges, self._random.random(self._count)), len(hidden) - 1)
        near = self.router(*hidden.sample(chosen, self._random)) @ functional.normalize(self._proxies).T
        loss = INTENT_SHARE * functional.cross_entropy(near[:, : self._intents] / TEMPERATURE, self._intent[chosen])
        loss = loss + functional.cross_entropy(near[:, self._intents :] / DOMAIN_TEMPERATURE, self._domain[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimiser.step()
        self._rates.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def state(self, said: Mapping[str, str]) -> dict[str, Any]:  # Any: what torch.save takes
        """Return what `load` takes; said: the recipe's keys."""
        return {
            "network": self.router.state_dict(),
            "proxies": self._proxies.detach(),
            "optimiser": self._optimiser.state_dict(),
            "rates": self._rates.state_dict(),
            "random": self._random.bit_generator.state,
            "step": self.step,
            "loss": self.loss,
            "recipe": dict(said),
        }

    def load(self, state: Mapping[str, Any], said: Mapping[str, str], path: Path) -> None:
        """Go on from what `state` returned; raises ConfigError or DataError when it is of another recipe or network."""
        check_keys(said, state, path)
        load_weights(self.router, state["network"], path)
        if "proxies" not in state or state["proxies"].shape != self._proxies.shape:
            raise DataError(f"{path} was trained on other messages; remove it, or give the run another name")
        with torch.no_grad():
            self._proxies.copy_(state["proxies"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rates.load_state_dict(state["rates"])
        self._random.bit_generator.state = state["random"]
        self.step, self.loss = int(state["step"]), state["loss"]


@torch.no_grad()
def queries(router: Router, hidden: Hidden, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Return the unit queries [messages, key_size] of all messages, or of the chosen ones."""
    chosen = np.arange(len(hidden)) if chosen is None else chosen
    parts = [router(*hidden.batch(chosen[i : i + QUERY_BATCH])) for i in range(0, len(chosen), QUERY_BATCH)]
    out: NDArray[np.float32] = torch.cat(parts).numpy()
    return out


def _numbered(labels: Sequence[str]) -> tuple[int, Tensor]:
    names = {name: number for number, name in enumerate(sorted(set(labels)))}
    return len(names), torch.tensor([names[label] for label in labels])
