"""Small checkpoints in the layout of Hugging Face, Qwen2-shaped, with random weights and a ChatML tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chatml import CONTROL, JINJA, chatml_tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "vocab_size": 320,  # more than the tokenizer has, as Qwen2's
}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw a checkpoint's tensors by their names; norms and biases are drawn too."""
    random = np.random.RandomState(seed)  # whose numbers no version changes: stored logits are of them
    size, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    wide = config.get("head_dim", size // heads)
    kv = config["num_key_value_heads"] * wide
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], size), "model.norm.weight": (size,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], size)
    for layer in range(config["num_hidden_layers"]):
        of_layer = {
            "input_layernorm.weight": (size,),
            "post_attention_layernorm.weight": (size,),
            **{
                f"self_attn.{name}_proj.weight": (rows, size)
                for name, rows in (("q", heads * wide), ("k", kv), ("v", kv))
            },
            **{f"self_attn.{name}_proj.bias": (rows,) for name, rows in (("q", heads * wide), ("k", kv), ("v", kv))},
            "self_attn.o_proj.weight": (size, heads * wide),
            "mlp.gate_proj.weight": (ffn, size),
            "mlp.up_proj.weight": (ffn, size),
            "mlp.down_proj.weight": (size, ffn),
        }
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()})
    tensors = {}
    for name, shape in shapes.items():
        # large enough that attention and its biases matter
        values = random.standard_normal(shape) * (1.5 * shape[-1] ** -0.5 if len(shape) == 2 else 0.3)
        tensors[name] = torch.from_numpy(values + 1 if "norm" in name else values).float()
    return tensors


def write_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    files: int = 1,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """Write a checkpoint into `directory`; return its tensors, in float32 as they are stored.

    files: how many the weights are split into. changes: of the configuration.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    tensors = {name: value.to(dtype).contiguous() for name, value in random_tensors(config, seed).items()}
    (directory / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    else:
        names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
        where = {name: names[number % files] for number, name in enumerate(tensors)}
        for file in names:
            save_file({name: tensors[name] for name in tensors if where[name] == file}, directory / file)
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "tokenizer.json").write_text(chatml_tokenizer(), encoding="utf-8")
    settings = {"chat_template": JINJA, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    library = Tokenizer.from_str(chatml_tokenizer())
    ends = [library.token_to_id(name) for name in (CONTROL[2], CONTROL[0])]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return {name: value.float() for name, value in tensors.items()}


GOLDEN: dict[str, dict[str, Any]] = {
    "tied": {"seed": 5},
    "untied": {"seed": 6, "tie_word_embeddings": False, "num_key_value_heads": 2},
    "bfloat16": {"seed": 7, "dtype": torch.bfloat16, "rope_theta": 10000.0, "num_attention_heads": 4, "head_dim": 32},
}
"""Checkpoints whose logits by transformers are stored: see tests/train/pretrained/make_golden.py."""
GOLDEN_ROWS = 8


def golden_tokens(count: int = 48) -> list[int]:
    """Draw the tokens that stored logits are of."""
    tokens: list[int] = np.random.RandomState(0).randint(0, CONFIG["vocab_size"], count).tolist()
    return tokens
