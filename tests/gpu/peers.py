"""The same networks in torch, eager and compiled, timed as ours are: every step's logits come to the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gpu.options import Options
from gpu.timings import BATCHES


def peers(options: Options) -> dict[str, Any]:
    """Time the same networks in eager torch and through torch.compile, in float16 on a GPU."""
    import torch
    from gpu.compiled_peer import CompiledPeer
    from growing import EagerModel

    one, device = options.packs, options.device
    dtype = torch.float16 if device == "cuda" else torch.float32
    directories = one.make(options.made)
    base, pack = directories[one.base], directories[one.packs[0]]
    steps, batches = (3, (1,)) if options.small else (64, BATCHES)
    found: dict[str, Any] = {"ok": True, "eager": {"decode": {}}, "compiled": {"decode": {}}}
    prompt = torch.from_numpy(np.random.default_rng(0).integers(5, 4000, (1, one.prompt)))
    eager = EagerModel(base, pack, "float16", device, dtype)
    for batch in batches:
        eager.start(batch, one.prompt + steps + 8)
        if batch == 1:
            eager.feed(prompt)  # warms up
            eager.start(1, one.prompt + steps + 8)
            begun = time.perf_counter()
            eager.feed(prompt).float().cpu()
            found["eager"]["prefill"] = one.prompt / (time.perf_counter() - begun)
        found["eager"]["decode"][str(batch)] = batch * _rate(
            lambda step, batch=batch: eager.feed(torch.full((batch, 1), 5 + step)).float().cpu(), steps
        )
    try:
        for batch in batches:
            compiled = CompiledPeer(base, pack, batch, one.prompt + steps + 8, device, dtype)
            # as far in as ours is, so that as much is attended to
            feed = partial(_feed_at, compiled, one.prompt if batch == 1 else 32)
            found["compiled"]["decode"][str(batch)] = batch * _rate(feed, steps)
    except Exception as error:  # it may lack a C compiler there
        found["compiled"]["failed"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return found


def _feed_at(peer: Any, first: int, step: int) -> object:
    return peer.feed(5 + step, first + step)


def _rate(feed: Callable[[int], object], steps: int) -> float:
    """Return calls a second, after four that warm up."""
    for step in range(4):
        feed(step)
    begun = time.perf_counter()
    for step in range(4, 4 + steps):
        feed(step)
    return steps / (time.perf_counter() - begun)
