"""Routing keys: how a pack's messages are told from other people's, from queries alone.

A router learns no packs. A pack's keys are centres of its examples' queries; the router brings a background,
centres of messages that belong to no pack. A message
scores by how much nearer it is to the keys than to the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

KEYS: Final = 16
BACKGROUND: Final = 128
"""Centres of a pack with enough examples, and of a router's background."""
AGAINST_CENTRES: Final = 24
"""Of the messages of the packs that it stands beside."""
METHOD: Final = 2
"""Counts the ways in which keys have been made: those in a cache that were made otherwise are made again."""
GROWN: Final = 4
"""Keys that a pack gets with new messages."""
MOST_KEYS: Final = 64
TAKEN: Final = 0.02
"""Share of other messages that a pack which is held back may take."""
_SHARPNESS: Final = 14.0  # the inverse of the temperature that routers are trained with
_ROUNDS: Final = 20
_UNFITTED: Final = (10.0, -2.0)  # about what packs with many examples get
_FEW: Final = 64
_RESERVE: Final = 0.17  # how much nearer to its keys than to the background a message of a small pack must be
_SMOOTHING: Final = 0.02  # labels are never quite sure, so a perfect split keeps a finite scale


def nearness(queries: Floats, centres: Floats) -> Floats:
    """Return [m], how near unit queries [m, key_size] are to centres [n, key_size]: a soft maximum of the cosines.

    log(mean(exp(s * cosine))) / s: a mean, so that many centres are not nearer than few. Zeros for no centres.
    """
    if not len(centres):
        return np.zeros(len(queries), np.float32)
    near: Floats = np.log(np.exp(_SHARPNESS * (queries @ centres.T)).mean(-1)) / _SHARPNESS
    return near


def scores(queries: Floats, keys: Floats, scale: float, bias: float, background: Floats) -> Floats:
    """Return [m], 0..1: sigmoid(scale * (nearness to the keys - nearness to the background) + bias)."""
    logits = scale * (nearness(queries, keys) - nearness(queries, background)) + bias
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    return out


def apart(background: Floats, against: Floats | None) -> Floats:
    """Return what a pack's messages are told from: the router's background, and what the pack brings beside it."""
    return background if against is None else np.concatenate([background, against])


def routing_keys(own: Floats, others: Floats, background: Floats, *, keys: int = KEYS) -> dict[str, Floats]:
    """Return `keys` [n, key_size], `scale` [1] and `bias` [1] of a pack, as routing.safetensors holds them.

    own, others: unit queries [m, key_size] of the pack's examples and of other messages, at least one each. Keys
    are the centres of a spherical k-means (Dhillon & Modha, 2001) over `own`; scale and bias are fitted so that
    both sides weigh the same (Platt, 1999). While they are fitted, an own message is held against its cluster's
    centre without itself: few examples make no pack look surer than it is. Of a single one nothing can be left out,
    so scale and bias are not fitted. A pack of few examples is held back: it finds less of
    its own, but takes little from others.
    """
    centres, nearest = _centres(own, min(keys, max(1, len(own) // 4)))
    near = np.concatenate([_left_out(own, centres, nearest), nearness(others, centres)])
    near -= nearness(np.concatenate([own, others]), background)
    wanted = np.concatenate([np.full(len(own), 1 - _SMOOTHING), np.full(len(others), _SMOOTHING)])
    weight = np.concatenate([np.full(len(own), 0.5 / len(own)), np.full(len(others), 0.5 / len(others))])
    scale, bias = _logistic(near.astype(np.float64), wanted, weight) if len(own) > 1 else _UNFITTED
    if len(own) < _FEW:
        bias = min(bias, -_RESERVE * scale)
    return {"keys": centres, "scale": np.array([scale], np.float32), "bias": np.array([bias], np.float32)}


def keys_beside(own: Floats, others: Floats, beside: Floats, background: Floats, reach: float) -> dict[str, Floats]:
    """Return the `routing_keys` of a pack that stands beside packs whose messages have the queries `beside`.

    Centres of those are what its own are told from too (`against` [m, key_size]): nothing but the router tells one
    subject from another that neither learnt to know. Of a pack of Rust pages, keys without them reached 0.43 of the
    natural messages of other packs, with them 0.06. It is held back too.
    """
    against = _centres(beside, min(AGAINST_CENTRES, len(beside)))[0]
    from_ = apart(background, against)
    every = np.concatenate([others, beside])
    made = routing_keys(own, every, from_)
    return {**held_back(made, every, from_, reach), "against": against}


def held_back(made: Mapping[str, Floats], others: Floats, background: Floats, reach: float) -> dict[str, Floats]:
    """Return `routing_keys`' result with its bias lowered until at most TAKEN of `others` score `reach` or more.

    A pack that stands among packs that are known already finds less of its own so, but takes next to nothing of theirs.
    """
    scale, reach = float(made["scale"][0]), min(0.999, max(0.001, reach))
    near = scale * (nearness(others, made["keys"]) - nearness(others, background))
    bias = min(float(made["bias"][0]), float(np.log(reach / (1 - reach)) - np.quantile(near, 1 - TAKEN)))
    return {**made, "bias": np.array([bias], np.float32)}


def grown_keys(keys: Floats, own: Floats) -> Floats:
    """Return a pack's keys [n, key_size] and more, nearer to the unit queries `own` [m, key_size] of new messages.

    The old keys stay, so what they found is still found: made anew from the few examples that a pack is shipped with,
    keys found 2.8 of 100 requests less. Of a pack that grew often, keys that are alike are made one.
    """
    more = _centres(own, min(GROWN, len(own)))[0]
    every: Floats = np.concatenate([keys, more])
    return every if len(every) <= MOST_KEYS else _centres(every, MOST_KEYS)[0]


def background_centres(queries: Floats) -> Floats:
    """Return the centres [n, key_size] of messages that belong to no pack, of queries [m, key_size]; none of none."""
    if not len(queries):
        return np.empty((0, queries.shape[1]), np.float32)
    return _centres(queries, min(BACKGROUND, len(queries)))[0]


def _centres(points: Floats, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return `count` unit centres and each point's nearest; seeded far apart, so the same points give the same."""
    centres = np.empty((count, points.shape[1]), np.float32)
    centres[0] = _unit(points.mean(0))
    for k in range(1, count):
        centres[k] = points[(points @ centres[:k].T).max(1).argmin()]
    nearest = np.zeros(len(points), np.int64)
    for _ in range(_ROUNDS):
        nearest = (points @ centres.T).argmax(1)
        for k in np.unique(nearest):
            centres[k] = _unit(points[nearest == k].mean(0))
    return centres, (points @ centres.T).argmax(1)


def _left_out(points: Floats, centres: Floats, nearest: NDArray[np.int64]) -> Floats:
    """Return each point's nearness to the centres where its own cluster's is made without it."""
    similar = points @ centres.T
    for k in np.unique(nearest):
        members = np.flatnonzero(nearest == k)
        total = points[members].sum(0)
        rest = _unit(total[None, :] - points[members])
        similar[members, k] = np.einsum("md,md->m", points[members], rest) if len(members) > 1 else -1.0
    near: Floats = np.log(np.exp(_SHARPNESS * similar).mean(1)) / _SHARPNESS
    return near


def _logistic(x: NDArray[np.float64], wanted: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Fit sigmoid(scale * x + bias) to `wanted` by Newton's method; the scale is positive and at most 100."""
    fit = np.array(_UNFITTED)
    design = np.stack([x, np.ones_like(x)], 1)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ fit, -60, 60)))
        slope = design.T @ (weight * (p - wanted)) + np.array([2e-5 * fit[0], 0.0])
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag([2e-5, 1e-9])
        step = np.linalg.solve(curve, slope)
        fit -= step * min(1.0, 10.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    if not 1.0 <= fit[0] <= 100.0:  # nothing tells the two apart, or everything does
        fit[0] = min(100.0, max(1.0, fit[0] if np.isfinite(fit[0]) else 1.0))
        fit[1] = -fit[0] * float(np.average(x, weights=weight))
    return float(fit[0]), float(fit[1])


def _unit(rows: Floats) -> Floats:
    out: Floats = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return out.astype(np.float32)
