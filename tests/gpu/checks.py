"""What must be right: every program beside its definition, whole turns beside torch, graphs and swaps bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from gpu.options import Options, answer, load
from gpu.sets import builds_of

from modularbase_core.device.artefact import artefact_directory
from modularbase_core.device.executable import Device

TURN_BOUNDS: Final = {"float32": 1e-3, "float16": 2e-2, "int8": 1e-1, "int4": 1e-1}
"""Largest L2 error of a turn's logits against float32 over the same weights."""


def programs(options: Options) -> dict[str, Any]:
    """Compare each program of a set's artefacts with its definition."""
    from gpu.parity import check_artefact

    builds = builds_of(options.packs, options.target, options.precision)
    assert not isinstance(builds, str)
    if options.device == "cpu":
        load(options)  # compiles them
    device = Device(options.device, graphs=False)
    checked = [check_artefact(artefact_directory(build, options.cache), device) for build in builds]
    return {"ok": all(one["ok"] for one in checked), "artefacts": checked}


def turns(options: Options) -> dict[str, Any]:
    """Answer with two packs, with and without graphs, and compare logits with torch's; swap, and compare bits."""
    from growing import EagerModel

    steps, prompt = (4, 24) if options.small else (24, 200)
    tokens = np.random.default_rng(1).integers(5, 4000, prompt).tolist()
    said: dict[bool, dict[str, list[np.ndarray]]] = {}
    again, told = True, {}
    for graphs in (False, True):
        parts, directories = load(options, cuda_graphs=graphs)
        packs, engine = options.packs.packs, parts.engine()
        said[graphs] = {pack: answer(parts, engine, pack, tokens, steps) for pack in packs[:2]}
        for pack in packs[1:]:  # more than there are slots, so that the first of them is brought in anew
            answer(parts, engine, pack, tokens, 2)
        back = answer(parts, engine, packs[1], tokens, steps)
        again = again and _same(back, said[graphs][packs[1]])
    for pack, ours in said[False].items():
        peer = EagerModel(directories[options.packs.base], directories[pack], options.precision)
        told[pack] = _compared(peer, tokens, ours)
    worst = max(one["error"] for one in told.values())
    alike = all(_same(said[True][pack], ours) for pack, ours in said[False].items())
    bound = TURN_BOUNDS[options.precision]
    ok = worst <= bound and alike and again
    return {"ok": ok, "bound": bound, "worst": worst, "packs": told, "graphs_alike": alike, "swap_alike": again}


def _compared(peer: Any, tokens: Sequence[int], ours: Sequence[np.ndarray]) -> dict[str, float]:
    """Feed a peer what ours said; return the largest error of logits and how often both would say the same."""
    import torch

    peer.start(1, len(tokens) + len(ours))
    errors, agreed, given = [], 0, torch.tensor([list(tokens)])
    for one in ours:
        theirs = peer.feed(given)[0].numpy()
        errors.append(float(np.linalg.norm(one - theirs) / np.linalg.norm(theirs)))
        agreed += int(one.argmax() == theirs.argmax())
        given = torch.tensor([[int(one.argmax())]])
    return {
        "error": max(error if np.isfinite(error) else float("inf") for error in errors),
        "agree": agreed / len(ours),
    }


def _same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
