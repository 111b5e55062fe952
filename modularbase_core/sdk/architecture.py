"""The shapes of base, pack and router networks, as data.

Decides which numbers describe a network and what makes two networks share one compiled artefact.
The maths is in `graph`; this file imports neither torch nor TVM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import inf
from typing import Any, ClassVar, Final, TypeVar

from modularbase_core.errors import ArchitectureError, nearest
from modularbase_core.sdk.jsonfile import shown

PAGE_TOKENS: Final = 16
"""Tokens in a page of keys, values and hidden states."""

ROUTED_TOKENS: Final = 64
"""Of a longer message the router reads so many tokens of its beginning and of its end."""

LARGEST: Final[Mapping[str, int]] = {
    "trained_tokens": 1 << 20,
    "block_tokens": 1 << 20,
    "recent_tokens": 1 << 20,
    "sink_tokens": 1 << 20,
    "hidden_size": 1 << 16,
    "heads": 1 << 10,
    "kv_heads": 1 << 10,
    "head_size": 1 << 10,
    "ffn_size": 1 << 18,
    "experts": 1 << 8,
    "experts_per_token": 1 << 8,
    "vocabulary_size": 1 << 22,
    "understanding_layers": 1 << 9,
    "fusion_layers": 1 << 9,
    "layers": 1 << 9,
    "base_hidden_size": 1 << 16,
    "width": 1 << 16,
    "key_size": 1 << 16,
    "head_rank": 1 << 12,
}
"""Sizes beyond which a description is taken for a mistake, before anything is made from it."""

ACTIVATIONS: Final = ("swiglu", "geglu", "gelu")
"""Of a feed-forward: gated by silu, gated by gelu, gelu without a gate."""

# what was added later and left alone keeps the keys of manifests
_ADDED: Final[Mapping[str, Mapping[str, object]]] = {
    "router": {"heads": 1},
    "pack": {"head_rank": 0, "vocabulary_size": 0},
    "blocks": {"activation": "swiglu"},
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a token may see, in tokens: sinks + recalled + recent + its own block <= trained_tokens."""

    trained_tokens: int = 1024
    block_tokens: int = 256
    recent_tokens: int = 496
    sink_tokens: int = 16

    def __post_init__(self) -> None:
        for name in ("trained_tokens", "block_tokens", "recent_tokens", "sink_tokens"):
            _check_size(self, name)
            if getattr(self, name) % PAGE_TOKENS:
                raise ArchitectureError(f"window.{name} is {getattr(self, name)}; use a multiple of {PAGE_TOKENS}")
        if self.recall_tokens < 0:
            raise ArchitectureError(
                f"window: sink_tokens + recent_tokens + block_tokens is {self.trained_tokens - self.recall_tokens}, "
                f"more than trained_tokens {self.trained_tokens}; lower recent_tokens or block_tokens"
            )

    @property
    def recall_tokens(self) -> int:
        """Tokens left for recalled pages."""
        return self.trained_tokens - self.sink_tokens - self.recent_tokens - self.block_tokens

    @property
    def fully_visible_tokens(self) -> int:
        """Tokens from the first on that each see all before them, and nothing recalled: whole blocks of them."""
        return ((self.recent_tokens + self.sink_tokens) // self.block_tokens + 1) * self.block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """One transformer block, Llama/Qwen2-shaped; `experts` > 0 makes its feed-forward a mixture.

    activation: one of `ACTIVATIONS`.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    experts: int = 0
    experts_per_token: int = 2
    activation: str = "swiglu"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "heads", "kv_heads", "head_size", "ffn_size", "experts_per_token"):
            _check_size(self, name)
        _check_size(self, "experts", least=0)
        for name in ("rope_theta", "norm_epsilon"):
            if not 0 < getattr(self, name) < inf:
                raise ArchitectureError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if self.heads % self.kv_heads:
            raise ArchitectureError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_size % 32:
            raise ArchitectureError(f"head_size is {self.head_size}; use a multiple of 32")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ArchitectureError(f"experts_per_token {self.experts_per_token} is not in 1..{self.experts}")
        if self.activation not in ACTIVATIONS:
            told = nearest(self.activation, ACTIVATIONS)
            raise ArchitectureError(
                f"activation is {shown(self.activation)}; use one of {', '.join(ACTIVATIONS)}{told}"
            )

    @property
    def qkv_size(self) -> int:
        """Width of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def gate_up_size(self) -> int:
        """Width of a feed-forward's first projection: gate and up, or up alone."""
        return self.ffn_size if self.activation == "gelu" else 2 * self.ffn_size


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseArchitecture:
    """Embedding, understanding layers, fusion layers and head."""

    kind: ClassVar[str] = "base"
    blocks: Blocks
    vocabulary_size: int
    understanding_layers: int
    fusion_layers: int
    tied_embedding: bool = True
    window: Window = field(default_factory=Window)

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "understanding_layers", "fusion_layers"):
            _check_size(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackArchitecture:
    """Input adapter, expert layers and output adapter around `blocks`, for a base of `base_hidden_size`.

    head_rank: rank of what the pack adds to the logits of its base's vocabulary_size tokens; 0 for both where it adds
    nothing.
    """

    kind: ClassVar[str] = "pack"
    base_hidden_size: int
    blocks: Blocks
    layers: int
    window: Window = field(default_factory=Window)
    head_rank: int = 0
    vocabulary_size: int = 0

    def __post_init__(self) -> None:
        for name in ("base_hidden_size", "layers"):
            _check_size(self, name)
        for name in ("head_rank", "vocabulary_size"):
            _check_size(self, name, least=0)
        if bool(self.head_rank) != bool(self.vocabulary_size):
            raise ArchitectureError(
                f"head_rank is {self.head_rank} and vocabulary_size {self.vocabulary_size}; give both, or neither"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterArchitecture:
    """Attention pooling of the base's hidden states, each head over its share of `width`, into a unit query.

    vocabulary_size: tokens of the router's own lexicon, 0 for none; a small base tells few words apart by their
    hidden states, the lexicon tells them all. Hidden states then say which words count.
    """

    kind: ClassVar[str] = "router"
    base_hidden_size: int
    width: int
    key_size: int
    heads: int = 1
    vocabulary_size: int = 0

    def __post_init__(self) -> None:
        for name in ("base_hidden_size", "width", "key_size", "heads"):
            _check_size(self, name)
        if self.vocabulary_size:
            _check_size(self, "vocabulary_size")
        if self.width % self.heads:
            raise ArchitectureError(f"width {self.width} is not a multiple of heads {self.heads}")


Architecture = BaseArchitecture | PackArchitecture | RouterArchitecture


def architecture_to_dict(architecture: Architecture) -> dict[str, Any]:
    """Describe an architecture as plain JSON values."""
    return {"kind": architecture.kind, **asdict(architecture)}


def architecture_from_dict(value: Mapping[str, Any]) -> Architecture:
    """Read what `architecture_to_dict` wrote.

    Raises ArchitectureError on an unknown kind, key or value.
    """
    kinds: dict[str, type[Architecture]] = {
        "base": BaseArchitecture,
        "pack": PackArchitecture,
        "router": RouterArchitecture,
    }
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ArchitectureError(f"architecture.kind is {shown(kind)}; use one of {', '.join(kinds)}")
    rest: dict[str, Any] = {key: item for key, item in value.items() if key != "kind"}
    if isinstance(rest.get("blocks"), Mapping):
        rest["blocks"] = _build(Blocks, rest["blocks"], "architecture.blocks")
    if isinstance(rest.get("window"), Mapping):
        rest["window"] = _build(Window, rest["window"], "architecture.window")
    return _build(kinds[kind], rest, "architecture")


def routed_part(rows: Sequence[int]) -> Sequence[int]:
    """Return those of a message's rows that the router reads: all, or its beginning and its end."""
    return rows if len(rows) <= 2 * ROUTED_TOKENS else [*rows[:ROUTED_TOKENS], *rows[-ROUTED_TOKENS:]]


def layer_count(architecture: Architecture) -> int | None:
    """Count the transformer layers; None for a router, which has none."""
    if isinstance(architecture, BaseArchitecture):
        return architecture.understanding_layers + architecture.fusion_layers
    return architecture.layers if isinstance(architecture, PackArchitecture) else None


def hidden_width(architecture: Architecture) -> int:
    """Return how wide the network is inside."""
    return architecture.width if isinstance(architecture, RouterArchitecture) else architecture.blocks.hidden_size


def architecture_key(architecture: Architecture) -> str:
    """Return 16 hex digits that equal architectures share."""
    plain = architecture_to_dict(architecture)
    for owner, described in ((architecture.kind, plain), ("blocks", plain.get("blocks", {}))):
        for name, before in _ADDED.get(owner, {}).items():
            if described.get(name) == before:
                del described[name]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(kind: type[_T], value: Mapping[str, Any], where: str) -> _T:
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # every caller passes a dataclass
    for key, given in value.items():
        if key not in known:
            raise ArchitectureError(f"{where} has the unknown key {shown(key)}{nearest(key, known)}")
        wanted: Any = {"str": str, "int": int, "float": (int, float), "bool": bool, "Blocks": Blocks, "Window": Window}[
            str(known[key].type)
        ]
        if not isinstance(given, wanted) or (isinstance(given, bool) and wanted is not bool):
            raise ArchitectureError(f"{where}.{key} is {shown(given)}; expected {known[key].type}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ArchitectureError(f"{where} lacks {name!r}")
    # 10000 and 10000.0 are one value, and architectures that are equal share one key
    floats = {key: _real(given) for key, given in value.items() if known[key].type == "float"}
    return kind(**{**value, **floats})


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return inf


def _check_size(owner: object, name: str, least: int = 1) -> None:
    value = getattr(owner, name)
    if value < least:
        raise ArchitectureError(f"{name} is {value}; it must be {'positive' if least else 'at least 0'}")
    if value > LARGEST[name]:
        raise ArchitectureError(f"{name} is {value}; the largest is {LARGEST[name]}")
