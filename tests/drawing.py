"""Hypothesis strategies of manifests: sound ones, and JSON that is almost one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tiny_packs import BASE, PACK, ROUTER

from modularbase_core.sdk.architecture import architecture_key
from modularbase_core.sdk.manifest import Dependency, Manifest
from modularbase_core.sdk.readers import BASE_VERSION, LANGUAGE, PATH, PROSE, SPECIFIER, TEXT, URL, VERSION

ids = st.from_regex(r"[a-z0-9]{1,5}([_-][a-z0-9]{1,3})?", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


def spelt(pattern: str, longest: int = 40) -> st.SearchStrategy[str]:
    """Strings of a reader's pattern."""
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= longest)


def several(one: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """None to three of them."""
    return st.lists(one, max_size=3).map(tuple)


def prefixed(prefix: str) -> st.SearchStrategy[str]:
    """Ids that no drawn pack has as its own."""
    return ids.map(prefix.__add__)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of all types, with and without a network."""
    type = draw(st.sampled_from(["base", "router", "system", "domain"]))
    architecture = draw(st.sampled_from([None, {"base": BASE, "router": ROUTER}.get(type, PACK)]))
    files = draw(st.dictionaries(spelt(PATH).filter(lambda path: path != "manifest.json"), digests, max_size=3))
    if type != "base":
        files = {path: digest for path, digest in files.items() if not path.startswith("tokenizer/")}
    downloads = draw(st.dictionaries(st.sampled_from(list(files)), spelt(URL), max_size=2)) if files else {}
    loose = architecture is None
    return Manifest(
        id=draw(ids),
        name=draw(spelt(TEXT)),
        version=draw(spelt(VERSION)),
        type=type,
        description=draw(spelt(PROSE)),
        licence=draw(spelt(TEXT)),
        languages=draw(several(spelt(LANGUAGE))),
        keywords=draw(several(spelt(TEXT))),
        aliases=draw(several(ids)),
        base=draw(st.none() | ids) if type != "base" else None,
        base_compatibility=draw(several(spelt(BASE_VERSION))),
        dependencies=draw(several(st.builds(Dependency, prefixed("other-"), spelt(SPECIFIER)))),
        fallback=draw(several(prefixed("other-"))),
        size_mb=draw(st.floats(0, 1e9) | st.integers(0, 10**9)),
        layers=draw(st.none() | st.integers(1, 1024)) if loose else None,
        hidden_size=draw(st.none() | st.integers(1, 65536)) if loose else None,
        architecture_key=draw(st.none() | st.just("0" * 16)) if loose else architecture_key(architecture),
        architecture=architecture,
        files=files,
        downloads=downloads,
    )
