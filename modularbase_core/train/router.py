"""Train the router: messages to queries, by contrast over intents and over domains.

Contrast with proxies and a temperature (Movshovitz-Attias et al., 2017). It learns no packs: one that arrives later
needs only its examples (`packs.keys`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from modularbase_core.errors import ConfigError
from modularbase_core.graph.networks import Base, Router
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import RouterArchitecture, routed_part
from modularbase_core.text.template import BEGIN, ROLES
from modularbase_core.train.checkpoints import load_base
from modularbase_core.train.installed import Installed
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.packing import control_id
from modularbase_core.train.recipe import Recipe

MESSAGE_TOKENS = 512
"""Of a longer message the rest is not read; the router reads its beginning and the end of this."""
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
def understand_messages(base: Base, tokenizer: Tokenizer, texts: Sequence[str], *, quiet: bool) -> Hidden:
    """Run user messages through the understanding layers, each as the first of a conversation."""
    begin, user = control_id(tokenizer, BEGIN), control_id(tokenizer, ROLES["user"])
    ids = [tokenizer.encode(text).ids[:MESSAGE_TOKENS] or [user] for text in texts]
    alike = defaultdict(list)  # messages of one length need no mask
    for number, one in enumerate(ids):
        alike[len(one)].append(number)
    parts: list[Tensor] = [torch.empty(0)] * len(ids)
    read = [torch.tensor(routed_part(one), dtype=torch.int32) for one in ids]
    with tqdm(total=len(ids), unit="message", disable=quiet, mininterval=10.0) as bar:
        for length, numbers in alike.items():
            count, chosen = max(1, _ROWS // (length + 2)), torch.tensor(routed_part(range(length))) + 2
            for first in range(0, len(numbers), count):
                some = numbers[first : first + count]
                tokens = torch.tensor([[begin, user, *ids[number]] for number in some])
                hidden = base.understand(tokens.flatten(), Windows(len(some)))
                rows = hidden.view(len(some), length + 2, -1)[:, chosen].half()
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
    tokenizer = Tokenizer.from_file(str(recipe.folder / recipe.tokenizer))
    tokenizer.encode_special_tokens = True  # a control token in the text stays text
    parts = [read_messages([source], data, recipe.folder, recipe.seed) for source in recipe.mix]
    messages = [message for part in parts for message in part]
    base = load_base(recipe, runs, installed).eval().requires_grad_(False)
    hidden = understand_messages(base, tokenizer, [message.text for message in messages], quiet=quiet)
    chance = np.concatenate(
        [
            np.full(len(part), source.share / len(part) if source.share else 1.0 / len(messages))
            for source, part in zip(recipe.mix, parts, strict=True)
        ]
    )
    router = fit_router(recipe, recipe.router, hidden, messages, chance, quiet=quiet)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network": router.state_dict(), "step": recipe.steps}, checkpoint)


def fit_router(
    recipe: Recipe,
    architecture: RouterArchitecture,
    hidden: Hidden,
    messages: Sequence[Labelled],
    chance: NDArray[np.float64],
    *,
    quiet: bool,
) -> Router:
    """Fit a router to messages with their hidden states, drawn in proportion to `chance`."""
    torch.manual_seed(recipe.seed)
    router = Router(architecture)
    intents, intent = _numbered([f"{message.domain}:{message.intent}:{message.language}" for message in messages])
    domains, domain = _numbered([message.domain for message in messages])
    proxies = nn.Parameter(torch.randn(intents + domains, architecture.key_size))
    optimiser = torch.optim.AdamW([*router.parameters(), proxies], lr=recipe.other_rate, weight_decay=0.01)
    steps = recipe.steps
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.other_rate, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng(recipe.seed)
    edges = np.cumsum(chance / chance.sum())
    for _ in tqdm(range(steps), unit="step", disable=quiet, mininterval=10.0):
        chosen = np.minimum(np.searchsorted(edges, random.random(recipe.batch_tokens)), len(hidden) - 1)
        near = router(*hidden.sample(chosen, random)) @ functional.normalize(proxies).T
        loss = INTENT_SHARE * functional.cross_entropy(near[:, :intents] / TEMPERATURE, intent[chosen])
        loss = loss + functional.cross_entropy(near[:, intents:] / DOMAIN_TEMPERATURE, domain[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        rate.step()
        optimiser.zero_grad(set_to_none=True)
    return router.eval()


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
