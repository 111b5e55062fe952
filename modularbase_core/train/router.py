"""Train the router and make a pack's routing keys.

The router learns by contrast over intents (proxies with a temperature, Movshovitz-Attias et al., 2017), not
over packs, so a pack that arrives later needs only its examples: their queries' centres are its keys, and a
logistic fit against other people's messages calibrates its score.
"""

from __future__ import annotations

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

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Router
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.text.template import BEGIN, ROLES
from modularbase_core.train.checkpoints import load_base
from modularbase_core.train.corpus import read_json_lines
from modularbase_core.train.packing import Source, control_id
from modularbase_core.train.recipe import Recipe

MESSAGE_TOKENS = 128
TEMPERATURE = 0.07
QUERY_BATCH = 256


@dataclass(frozen=True, slots=True)
class Hidden:
    """Messages' hidden states end to end: rows [n, E] float16, message m owns rows begin[m] .. begin[m+1]."""

    rows: Tensor
    begin: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.begin) - 1

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden [T, E] float32, starts [B], lengths [B] of some messages."""
        spans = [(int(self.begin[m]), int(self.begin[m + 1])) for m in chosen]
        lengths = torch.tensor([last - first for first, last in spans], dtype=torch.int32)
        hidden = torch.cat([self.rows[first:last] for first, last in spans]).float()
        return hidden, (lengths.cumsum(0) - lengths).to(torch.int32), lengths


@torch.no_grad()
def understand_messages(base: Base, tokenizer: Tokenizer, texts: Sequence[str], *, quiet: bool) -> Hidden:
    """Run user messages through the understanding layers, each as the first of a conversation."""
    begin, user = control_id(tokenizer, BEGIN), control_id(tokenizer, ROLES["user"])
    rows: list[Tensor] = []
    for text in tqdm(texts, unit="message", disable=quiet, mininterval=10.0):
        body = tokenizer.encode(text).ids[:MESSAGE_TOKENS] or [user]
        hidden = base.understand(torch.tensor([begin, user, *body]), Windows(1))
        rows.append(hidden[2:].half())
    return Hidden(torch.cat(rows), np.cumsum([0, *map(len, rows)]))


def train_router(recipe: Recipe, *, data: Path, runs: Path, checkpoint: Path, quiet: bool) -> None:
    """Train the recipe's router over a frozen base and save it; `tokens` and `batch_tokens` count messages here."""
    if not isinstance(recipe.router, RouterArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: a router needs its [router] architecture")
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(recipe.folder / recipe.tokenizer))
    tokenizer.encode_special_tokens = True  # a control token in the text stays text
    texts, labels = read_messages(recipe.mix, data, recipe.seed)
    base = load_base(recipe, runs).eval().requires_grad_(False)
    hidden = understand_messages(base, tokenizer, texts, quiet=quiet)
    names = sorted(set(labels))
    target = torch.tensor([names.index(label) for label in labels])
    router = Router(recipe.router)
    proxies = nn.Parameter(torch.randn(len(names), recipe.router.key_size))
    optimiser = torch.optim.AdamW([*router.parameters(), proxies], lr=recipe.other_rate, weight_decay=0.01)
    steps = recipe.steps
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.other_rate, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng(recipe.seed)
    for _ in tqdm(range(steps), unit="step", disable=quiet, mininterval=10.0):
        chosen = random.integers(0, len(hidden), recipe.batch_tokens)
        query = router(*hidden.batch(chosen))
        loss = functional.cross_entropy(query @ functional.normalize(proxies).T / TEMPERATURE, target[chosen])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        rate.step()
        optimiser.zero_grad(set_to_none=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network": router.state_dict(), "step": recipe.steps}, checkpoint)


def read_messages(sources: Sequence[Source], data: Path, seed: int) -> tuple[list[str], list[str]]:
    """Read labelled messages with their labels `domain:intent`, at most `source.tokens` of each source."""
    texts: list[str] = []
    labels: list[str] = []
    for source in sources:
        rows = [row for name in source.files for row in read_json_lines(data / name)]
        if source.domains:
            rows = [row for row in rows if row.get("domain") in source.domains]
        if source.languages:
            rows = [row for row in rows if row.get("lang") in source.languages]
        if not rows:
            raise DataError(f"no message in {', '.join(source.files)} matches the recipe")
        for index in np.random.default_rng(seed).permutation(len(rows))[: source.tokens]:
            row = rows[index]
            texts.append(row["text"] if "text" in row else row["prompt"])
            labels.append(f"{row.get('domain', '')}:{row.get('intent', '')}")
    return texts, labels


@torch.no_grad()
def queries(router: Router, hidden: Hidden) -> Tensor:
    """Return the unit queries [messages, key_size]."""
    parts = [
        router(*hidden.batch(np.arange(i, min(i + QUERY_BATCH, len(hidden)))))
        for i in range(0, len(hidden), QUERY_BATCH)
    ]
    return torch.cat(parts)


def routing_keys(own: Tensor, others: Tensor, *, keys: int = 8, rounds: int = 20) -> dict[str, NDArray[np.float32]]:
    """Return `keys` [n, key_size], `scale` [1] and `bias` [1] of a pack.

    own, others: unit queries of the pack's examples and of other messages. Keys are the centres of a
    spherical k-means over `own`; score = sigmoid(scale * max(keys @ query) + bias), fitted so that both
    sides weigh the same.
    """
    generator = torch.Generator().manual_seed(0)
    centres = own[torch.randperm(len(own), generator=generator)[:keys]].clone()
    for _ in range(rounds):
        nearest = (own @ centres.T).argmax(1)
        for k in range(len(centres)):
            if (nearest == k).any():
                centres[k] = functional.normalize(own[nearest == k].mean(0), dim=0)
    near = torch.cat([(own @ centres.T).amax(1), (others @ centres.T).amax(1)])
    wanted = torch.cat([torch.ones(len(own)), torch.zeros(len(others))])
    weight = torch.cat([torch.full((len(own),), 0.5 / len(own)), torch.full((len(others),), 0.5 / len(others))])
    fit = torch.tensor([10.0, -5.0], requires_grad=True)
    solver = torch.optim.LBFGS([fit], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(near * fit[0] + fit[1], wanted, weight, reduction="sum")
        loss = loss + 1e-5 * fit[0] ** 2
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    scale, bias = fit.detach().numpy().astype(np.float32)
    return {
        "keys": centres.numpy().astype(np.float32),
        "scale": np.array([scale], np.float32),
        "bias": np.array([bias], np.float32),
    }
