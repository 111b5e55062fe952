"""What speed.py's samples say: medians, shares of the machine's limits, ratios to peers, and points of a roofline.

Shares and ratios are medians of the rounds' own. The share of the ceiling counts the bytes that a token must read
(weights with scales, keys and values) against memory's speed. A point of the roofline counts each weight, key and value
once a call, and the multiplications of matrices and attention.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speed_shape import BATCH_PROMPT, WARM, context_bytes, operations

Samples = dict[tuple[str, str], list[float]]
"""By engine and what was timed, a value a round: tokens a second, the machine's bytes and operations a second."""
PAIRS = {"int4": "Q4_0", "int8": "Q8_0"}
MOST_OF_A_SECOND_PACK = 1.1
"""What a second pack may add to a step, in terms of reading its bytes."""


def figures(samples: Samples, weights: Mapping[str, int], steps: int) -> dict[str, Any]:
    """Return everything that is told, for JSON. weights: bytes of them, by engine; steps: of a timed decode."""
    out: dict[str, Any] = {f"{name}: {what}": statistics.median(values) for (name, what), values in samples.items()}
    for name in weights:
        if name.startswith("ours"):
            out |= {f"{name}: {what}": value for what, value in _limits(name, samples, weights[name], steps).items()}
            out |= {f"{name}: {what}": value for what, value in _ratios(name, samples).items()}
    out["points"] = [
        point
        for name, what in samples
        if name != "machine" and (point := _point(name, what, out[f"{name}: {what}"], weights[name], steps))
    ]
    return out


def _limits(name: str, samples: Samples, weights: int, steps: int) -> dict[str, float]:
    """Hold one of ours against the machine, round by round."""

    def median(work: Callable[..., float], *what: str) -> float:
        rounds = zip(*(samples[key] for key in [("machine", "read"), *((name, one) for one in what)]), strict=True)
        return statistics.median(work(*values) for values in rounds)

    out = {}
    for what in [what for engine, what in samples if engine == name and what.startswith("decode")]:
        read = weights + context_bytes(_seen(what, steps), 4)
        out[f"{what}, share of the ceiling"] = median(lambda speed, rate, read=read: read * rate / speed, what)
    second = ("second pack's step", "second pack's bytes")
    out["second pack x reading its bytes"] = median(lambda speed, seconds, size: seconds * speed / size, *second)
    out["swap x copying its bytes"] = median(lambda _, swap, copy: swap / copy, "swap", "swap's copy")
    for what in [what for engine, what in samples if engine == name and what.startswith("batch")]:
        if (name, "batch 1") in samples and what != "batch 1":
            out[f"{what.split()[1]} sequences x one"] = median(lambda _, many, one: many / one, what, "batch 1")
    rate, limit = samples[name, "prefill 512"], samples["machine", "multiply"]
    done = operations(512, 256.5, 1) / 512
    out["prefill's share of int8 products"] = statistics.median(a * done / b for a, b in zip(rate, limit, strict=True))
    return out


def _ratios(name: str, samples: Samples) -> dict[str, float]:
    """Hold one of ours against each peer, round by round."""
    peers = [f"llama.cpp {PAIRS[name.split()[1]]}", "torch bf16", "torch bf16, compiled"]
    pairs = [(peer, what) for peer in peers for engine, what in samples if engine == name and (peer, what) in samples]
    return {
        f"{what} x {peer}": statistics.median(
            one / other for one, other in zip(samples[name, what], samples[peer, what], strict=True)
        )
        for peer, what in pairs
    }


def _seen(what: str, steps: int) -> float:
    """Return how many tokens a token of a timed decode sees, on average."""
    context = BATCH_PROMPT if what.startswith("batch") else int(what.split()[-1])
    return context + WARM + steps / 2


def _point(name: str, what: str, rate: float, weights: int, steps: int) -> dict[str, Any] | None:
    """Place what was timed on a roofline; None for what is no call."""
    kind, _, rest = what.partition(" ")
    item_bytes = 4 if name.startswith("ours") else 2
    if kind == "prefill":
        tokens = int(rest)
        done, size = operations(tokens, (tokens + 1) / 2, 1), weights + context_bytes(tokens, item_bytes)
    elif kind in ("decode", "batch"):
        tokens, seen = (int(rest) if kind == "batch" else 1), _seen(what, steps)
        done, size = operations(tokens, seen, tokens), weights + tokens * context_bytes(seen, item_bytes)
    else:
        return None
    return {"engine": name, "what": what, "flop_per_byte": done / size, "flop_per_second": rate / tokens * done}


def show(out: Mapping[str, Any]) -> None:
    """Print tokens a second of every engine, by what was timed, then all else."""
    rates = {key: value for key, value in out.items() if key.partition(": ")[2].split(" ")[0] in _KINDS}
    plain = {key: value for key, value in rates.items() if key.partition(": ")[2].split(" ")[-1].isdigit()}
    engines = list(dict.fromkeys(key.partition(": ")[0] for key in plain))
    for kind in _KINDS:
        whats = dict.fromkeys(what for key in plain if (what := key.partition(": ")[2]).startswith(kind))
        if whats:
            print(_row("tokens/s", list(whats)))
        for engine in engines:
            if any(f"{engine}: {what}" in plain for what in whats):
                cells = [plain.get(f"{engine}: {what}") for what in whats]
                print(_row(engine, ["" if cell is None else f"{cell:,.1f}" for cell in cells]))
        print()
    for key, value in out.items():
        if key not in plain and key != "points":
            print(f"{key:<64} {_number(value):>20}")
    print(f"a second pack in a turn may take {MOST_OF_A_SECOND_PACK} x reading its bytes")


_KINDS = ("prefill", "decode", "batch")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells)


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.5f}" if value < 0.1 else f"{value:,.2f}"


def read_line(text: str) -> dict[str, Any]:
    """Return the figures of a run from what it printed, whose last line they are."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
