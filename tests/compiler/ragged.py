"""Ragged calls, drawn: several sequences with their own lengths, contexts and scattered pages."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

PAGE = 16


def layout(lengths, contexts, listed, pool=64, seed=0):
    """Lay out a call of `lengths` new rows after `contexts`; return its int32 inputs by name."""
    rng = np.random.default_rng(seed)
    visible = rng.permutation(pool)[: len(lengths) * listed].reshape(len(lengths), listed).astype(np.int32)
    slots = [
        visible[b, (context + i) // PAGE] * PAGE + (context + i) % PAGE
        for b, (length, context) in enumerate(zip(lengths, contexts, strict=True))
        for i in range(length)
    ]
    return {
        "slots": np.array(slots, np.int32),
        "starts": np.cumsum([0, *lengths[:-1]]).astype(np.int32),
        "lengths": np.array(lengths, np.int32),
        "context": np.array(contexts, np.int32),
        "visible": visible,
    }


@st.composite
def calls(draw, listed=5, pool=64):
    """Draw up to three sequences that fit `listed` pages each."""
    spans = []
    for _ in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 40))
        spans.append((length, draw(st.integers(0, listed * PAGE - length))))
    return layout(*zip(*spans, strict=True), listed, pool, seed=draw(st.integers(0, 99)))


def in_chunks(program, whole, edges):
    """Run `understand` on one sequence, cut at `edges`; return rows, hidden pages and pages as one call does."""
    pages, hidden_pages, out = whole["pages"], whole["hidden_pages"], []
    for start, end in itertools.pairwise(edges):
        part = {
            **whole,
            "tokens": whole["tokens"][start:end],
            "slots": whole["slots"][start:end],
            "lengths": np.array([end - start], np.int32),
            "context": np.array([start], np.int32),
            "pages": pages,
            "hidden_pages": hidden_pages,
        }
        rows, hidden_pages, pages = program(**part)
        out.append(rows)
    return [np.concatenate(out), hidden_pages, pages]
