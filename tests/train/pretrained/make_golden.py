"""Write golden.safetensors: logits of tiny checkpoints, made by transformers, for tests that run without it.

python tests/train/pretrained/make_golden.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from qwen2_directory import GOLDEN, GOLDEN_ROWS, golden_tokens, write_checkpoint


def logits_of(directory: Path, token_ids: list[int]) -> torch.Tensor:
    """Return [T, V] of transformers' own Qwen2, in float32."""
    from transformers import Qwen2ForCausalLM

    network = Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = network(torch.tensor([token_ids])).logits[0]
    return logits


def main() -> None:
    """Make all of them."""
    made = {}
    for name, changes in GOLDEN.items():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), **changes)
            made[name] = logits_of(Path(folder), golden_tokens())[-GOLDEN_ROWS:].contiguous()
    save_file(made, Path(__file__).with_name("golden.safetensors"))


if __name__ == "__main__":
    main()
