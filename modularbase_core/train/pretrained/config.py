"""config.json of a checkpoint: its shape in our terms, and what makes it none that we read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ArchitectureError
from modularbase_core.sdk.architecture import PAGE_TOKENS, BaseArchitecture, Blocks, PackArchitecture, Window
from modularbase_core.sdk.jsonfile import read_json, shown

CONFIG_FILE: Final = "config.json"
MODEL_TYPE: Final = "qwen2"
LARGEST_WINDOW: Final = 4096
"""Tokens of the window unless told: general chat keeps keys and values for eight conversations of it."""
_LIMIT_BYTES: Final = 1 << 20
_BLOCK_TOKENS: Final = 256
_SINK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A checkpoint's network. longest: positions that it was trained with; tied: whether its head is its embedding."""

    blocks: Blocks
    vocabulary_size: int
    layers: int
    tied: bool
    longest: int


def read_config(directory: Path) -> Described:
    """Read a checkpoint's config.json; raises ArchitectureError, one sentence, on all that we do not run as it is."""
    if not directory.is_dir():
        raise ArchitectureError(f"{directory} is no folder; name one that holds a checkpoint with its {CONFIG_FILE}")
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ArchitectureError(f"{directory} holds no {CONFIG_FILE}; name a folder in the layout of Hugging Face")
    config = read_json(path, _LIMIT_BYTES, ArchitectureError)
    if not isinstance(config, dict):
        raise ArchitectureError(f"{path} is no object; give a checkpoint's own")
    read = _Values(path, config)
    _check_kind(path, config)
    heads, hidden_size = read.count("num_attention_heads"), read.count("hidden_size")
    if config.get("head_dim") is None and hidden_size % heads:
        raise ArchitectureError(f"{path}: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    try:
        blocks = Blocks(
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=read.count("num_key_value_heads", heads),
            head_size=read.count("head_dim", hidden_size // heads),
            ffn_size=read.count("intermediate_size"),
            rope_theta=_rope_theta(path, config, read),
            norm_epsilon=read.number("rms_norm_eps", 1e-6),
            qkv_bias=True,
        )
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from error
    return Described(
        blocks=blocks,
        vocabulary_size=read.count("vocab_size"),
        layers=read.count("num_hidden_layers"),
        tied=config.get("tie_word_embeddings") is True,
        longest=read.count("max_position_embeddings", 32768),
    )


def divide(
    described: Described, *, understanding_layers: int, fusion_layers: int, window_tokens: int | None = None
) -> tuple[BaseArchitecture, PackArchitecture]:
    """Return the shapes of base and general chat; raises ArchitectureError where no layer is left for one of them."""
    middle = described.layers - understanding_layers - fusion_layers
    if min(understanding_layers, middle, fusion_layers) < 1:
        raise ArchitectureError(
            f"the checkpoint has {described.layers} layers; {understanding_layers} that understand and {fusion_layers} "
            f"that fuse leave {max(0, middle)} for general chat, and each needs one at least; choose others"
        )
    window = _window(described, window_tokens)
    base = BaseArchitecture(
        blocks=described.blocks,
        vocabulary_size=described.vocabulary_size,
        understanding_layers=understanding_layers,
        fusion_layers=fusion_layers,
        tied_embedding=described.tied,
        window=window,
    )
    size = described.blocks.hidden_size
    return base, PackArchitecture(base_hidden_size=size, blocks=described.blocks, layers=middle, window=window)


def _window(described: Described, tokens: int | None) -> Window:
    longest = described.longest - described.longest % PAGE_TOKENS
    tokens = min(longest, LARGEST_WINDOW) if tokens is None else tokens
    if not 8 * PAGE_TOKENS <= tokens <= longest or tokens % PAGE_TOKENS:
        raise ArchitectureError(
            f"a window of {tokens} tokens does not go with a checkpoint of {described.longest} positions; "
            f"use a multiple of {PAGE_TOKENS} from {8 * PAGE_TOKENS} to {longest}"
        )
    block = min(_BLOCK_TOKENS, _pages(tokens // 4))
    recall = _pages(tokens // 8)  # kept for what is recalled from far back
    return Window(
        trained_tokens=tokens,
        block_tokens=block,
        recent_tokens=tokens - block - recall - _SINK_TOKENS,
        sink_tokens=_SINK_TOKENS,
    )


def _pages(tokens: int) -> int:
    return tokens - tokens % PAGE_TOKENS


# Any, here and below: whatever JSON held
def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse other networks, and what of this one our blocks do not have."""
    if config.get("model_type") != MODEL_TYPE:
        raise ArchitectureError(
            f"{path}: model_type is {shown(config.get('model_type'))}; only {MODEL_TYPE!r} is read (Qwen2 and Qwen2.5)"
        )
    named = config.get("architectures") or ["Qwen2ForCausalLM"]
    if not isinstance(named, list) or "Qwen2ForCausalLM" not in named:
        raise ArchitectureError(f"{path}: architectures is {shown(named)}; only Qwen2ForCausalLM, which talks, is read")
    if config.get("hidden_act", "silu") != "silu":
        raise ArchitectureError(f"{path}: hidden_act is {shown(config['hidden_act'])}; only 'silu' is read")
    if config.get("quantization_config"):
        raise ArchitectureError(
            f"{path}: the checkpoint is quantised; name the one that it was made from, in bf16, fp16 or fp32"
        )
    layers = config.get("layer_types") or []
    if config.get("use_sliding_window") or any(kind != "full_attention" for kind in layers):
        raise ArchitectureError(
            f"{path}: sliding-window attention is switched on, which our layers do not have; "
            "name a checkpoint whose every layer attends to all"
        )


def _rope_theta(path: Path, config: Mapping[str, Any], read: _Values) -> float:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise ArchitectureError(f"{path}: rope_scaling is {shown(scaling)}; expected an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ArchitectureError(
            f"{path}: positions are scaled ({shown(kind)}), which our layers do not do; "
            "take rope_scaling out, if the checkpoint was trained without it"
        )
    theta = scaling.get("rope_theta")
    return read.number("rope_theta", 10000.0) if theta is None else _Values(path, scaling).number("rope_theta", 0.0)


@dataclass(frozen=True, slots=True)
class _Values:
    """Reads the numbers of a configuration, by name."""

    path: Path
    config: Mapping[str, Any]

    def count(self, key: str, otherwise: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and otherwise is not None:
            return otherwise
        if type(value) is not int or value < 1:
            raise ArchitectureError(f"{self.path}: {key} is {shown(value)}; expected a positive whole number")
        return value

    def number(self, key: str, otherwise: float) -> float:
        value = self.config.get(key)
        if value is None:
            return otherwise
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ArchitectureError(f"{self.path}: {key} is {shown(value)}; expected a number")
        return float(value)
