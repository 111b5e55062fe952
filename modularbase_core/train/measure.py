"""Time a few real steps of a recipe on this machine: its networks, loss and optimisers, on made-up tokens.

Weights are random, nothing is read from runs or packs, and nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from modularbase_core.errors import ConfigError
from modularbase_core.graph.blocks import Stack
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture, RouterArchitecture
from modularbase_core.train.costs import MESSAGE_ROWS, learns
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.learn import schedule_of
from modularbase_core.train.messages import Labelled
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.parallel import joined
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.router import Hidden, RouterFit

SECONDS: Final = 3.0
"""Of steps, for each length of windows; no fewer than FEWEST of them."""
FEWEST: Final = 2
_MESSAGES: Final = 2048
_DOCUMENT_TOKENS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of a step in windows of `window` tokens, and what the first one takes longer, to compile."""

    window: int
    step_seconds: float
    first_seconds: float


def measure(recipe: Recipe) -> list[Pace]:
    """Time steps of each window length of the recipe, the shortest first."""
    if recipe.stage == "router":
        step = _router_steps(recipe)
        return [_pace(recipe.windows[0][1], step)]
    with _language_steps(recipe) as step_of:
        return [_pace(window, step_of(window)) for window in sorted({length for _, length in recipe.windows})]


def _pace(window: int, step: Callable[[], None]) -> Pace:
    times: list[float] = []
    first = _timed(step)
    while len(times) < FEWEST or sum(times) < SECONDS:
        times.append(_timed(step))
    usual = sorted(times)[len(times) // 2]
    return Pace(window=window, step_seconds=usual, first_seconds=max(0.0, first - usual))


def _timed(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@contextmanager
def _language_steps(recipe: Recipe) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Yield what makes a step of a window length."""
    base, pack = recipe.architecture, recipe.pack
    if not isinstance(base, BaseArchitecture) or not isinstance(pack, PackArchitecture):
        raise ConfigError(f"recipe {recipe.name!r} does not say which networks it trains")
    torch.manual_seed(recipe.seed)
    model = Whole(Base(base), Pack(pack), 0, frozen_base=not recipe.learns_base)
    with joined("ddp", recipe.device) as ranks:
        for name, value in model.named_parameters():
            value.requires_grad_(learns(recipe, name))
        model.to(ranks.device)
        for stack in model.modules():
            if isinstance(stack, Stack):
                stack.recompute = recipe.checkpoint_activations
        loss_of = Loss(model, compiled=recipe.compile, precision=recipe.precision)
        optimisers = Optimisers(model, schedule_of(recipe), recipe.optimiser)
        words = base.vocabulary_size

        def step_of(window: int) -> Callable[[], None]:
            ids = torch.randint(1, words, (recipe.batch_tokens // window, window + 1), device=ranks.device)
            ids[:, ::_DOCUMENT_TOKENS] = 0
            learn = torch.ones_like(ids, dtype=torch.bool)

            def step() -> None:
                for some, counts in zip(ids.chunk(recipe.accumulate), learn.chunk(recipe.accumulate), strict=True):
                    loss_of(some, counts).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimisers.clip()
                optimisers.step(0)
                optimisers.clear()

            return step

        yield step_of


def _router_steps(recipe: Recipe) -> Callable[[], None]:
    router = recipe.router
    if not isinstance(router, RouterArchitecture):
        raise ConfigError(f"recipe {recipe.name!r}: a router needs its [router] architecture")
    rows = _MESSAGES * MESSAGE_ROWS
    tokens = torch.randint(0, max(1, router.vocabulary_size), (rows,), dtype=torch.int32)
    begin = np.arange(0, rows + 1, MESSAGE_ROWS)
    hidden = Hidden(torch.randn(rows, router.base_hidden_size).half(), tokens, begin)
    longer = replace(recipe, tokens=recipe.batch_tokens * 1_000_000)  # its rates know no step after the last
    fit = RouterFit(longer, router, [Labelled("", f"{number % 64}") for number in range(_MESSAGES)])
    edges = np.linspace(0, 1, _MESSAGES + 1)[1:]

    def step() -> None:
        fit.learn(hidden, edges)

    return step
