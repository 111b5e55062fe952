"""Manifests to test with: the two that the design shows, and sound ones drawn by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tiny_packs import BASE, PACK, ROUTER

from modularbase_core.sdk.architecture import architecture_key
from modularbase_core.sdk.manifest import Dependency, Manifest

EXAMPLE_OF_THE_DESIGN = """{
  "id": "python_code",
  "name": "Python代码包",
  "version": "1.0.0",
  "type": "domain",
  "size_mb": 200,
  "layers": 6,
  "hidden_size": 1024,
  "keywords": ["python", "代码", "编程"],
  "dependencies": []
}"""
EXAMPLE_OF_VERSIONS = """{
  "id": "python_code",
  "version": "1.0.0",
  "base_compatibility": ["1.0", "1.1", "1.2"],
  "dependencies": [
    {"id": "reasoning", "version": ">=1.1"}
  ]
}"""

# samples, not patterns: a manifest has twenty keys, and drawing must be fast
ids = st.sampled_from(["a", "python_code", "tiny-base", "0", "x1-y2_z3"])
others = st.sampled_from(["reasoning", "general_chat", "2-b"])
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8)
prose = st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\t\n"), max_size=12)
versions = st.sampled_from(["1.0.0", "0.1", "1.1rc1", "2.0.post1", "1.0.dev3", "12.3.4.5"])
ranges = st.sampled_from(["", ">=1.1", ">=1.0,<2", "~=1.1", "== 1.0.*", "!=1.3rc1, < 2.0"])
base_versions = st.sampled_from(["1", "1.0", "==1.1rc1", ">=1.0,<2", "~=1.1", "==2.0.*"])
languages = st.sampled_from(["en", "zh", "zh-Hans", "pt-BR", "es-419", "sl-nedis"])
paths = st.sampled_from(["model.safetensors", "routing.safetensors", "tokenizer/tokenizer.json", "a/b_c/d-1.json"])
digests = st.integers(0, 16**64 - 1).map(lambda number: f"{number:064x}")
urls = st.sampled_from(["https://example.org/w", "http://example.org:8000/a/b?c=d", "http://127.0.0.1:9/x"])


def several(one: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """None to three of them."""
    return st.lists(one, max_size=3).map(tuple)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of all types, with and without a network."""
    type = draw(st.sampled_from(["base", "router", "system", "domain"]))
    architecture = draw(st.sampled_from([None, {"base": BASE, "router": ROUTER}.get(type, PACK)]))
    files = draw(st.dictionaries(paths, digests, max_size=3))
    if type != "base":
        files = {path: digest for path, digest in files.items() if not path.startswith("tokenizer/")}
    downloads = draw(st.dictionaries(st.sampled_from(list(files)), urls, max_size=2)) if files else {}
    loose = architecture is None
    return Manifest(
        id=draw(ids),
        name=draw(names),
        version=draw(versions),
        type=type,
        description=draw(prose),
        licence=draw(names),
        languages=draw(several(languages)),
        keywords=draw(several(names)),
        aliases=draw(several(ids)),
        base=draw(st.none() | ids) if type != "base" else None,
        base_compatibility=draw(several(base_versions)),
        dependencies=draw(several(st.builds(Dependency, others, ranges))),
        fallback=draw(several(others)),
        size_mb=draw(st.floats(0, 1e9) | st.integers(0, 10**9)),
        layers=draw(st.none() | st.integers(1, 1024)) if loose else None,
        hidden_size=draw(st.none() | st.integers(1, 65536)) if loose else None,
        architecture_key=draw(st.none() | st.just("0" * 16)) if loose else architecture_key(architecture),
        architecture=architecture,
        files=files,
        downloads=downloads,
    )
