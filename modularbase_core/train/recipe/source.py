"""A share of a mix: which files, and how much of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A share of a mix: `files` (relative to the data folder) and how many tokens of them to take.

    languages: keep only records that say so. sections: of pages, learn to answer a heading with the text under it.
    Where messages are labelled (a router's mix, a pack's examples and others), `domains` keeps only messages that say
    so, `domain` is theirs in place of what they say, `tokens` counts messages, and `share` is what part of a router's
    batches they make up, 0 for as many as they are.
    """

    files: tuple[str, ...]
    tokens: int
    languages: tuple[str, ...] = ()
    sections: bool = False
    domains: tuple[str, ...] = ()
    domain: str = ""
    share: float = 0.0
