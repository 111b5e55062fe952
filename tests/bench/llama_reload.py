"""The peer of swap.py, run by it in another environment: reload a model of so many bytes with llama.cpp.

Needs llama-cpp-python and gguf. Writes a Llama-shaped GGUF file of random float32 weights (kept for the next run),
then times, page cache warm: loading with the file mapped, loading with it read, and loading mapped to a first token.

    python llama_reload.py FILE BYTES
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

VOCABULARY = 288
REPEATS = 20


def main(file: Path, size_bytes: int) -> None:
    """Time and print one JSON line."""
    width = 1024 if size_bytes > 32e6 else 256
    parameters = 3 * width * width + 3 * width * feed(width)
    layers = max(1, round((size_bytes / 4 - 2 * VOCABULARY * width) / parameters))
    file = file.with_name(f"{file.stem}-{width}-{layers}.gguf")
    if not file.exists():
        write(file, width, layers)
    from llama_cpp import Llama

    def load(mapped: bool, token: bool) -> float:
        begun = time.perf_counter()
        model = Llama(str(file), n_ctx=64, use_mmap=mapped, verbose=False)
        if token:
            model.eval([1])
        seconds = time.perf_counter() - begun
        model.close()
        return 1e3 * seconds

    out: dict[str, float] = {"llama_bytes": file.stat().st_size}
    load(True, True)
    for name, mapped, token in (("mmap", True, False), ("read", False, False), ("token", True, True)):
        times = [load(mapped, token) for _ in range(REPEATS)]
        out[f"llama_{name}_p50_ms"] = statistics.median(times)
        out[f"llama_{name}_p99_ms"] = float(np.percentile(times, 99))
    print(json.dumps(out))


def feed(width: int) -> int:
    """Return the feed-forward width that goes with a width."""
    return width * 11 // 4


def write(file: Path, width: int, layers: int) -> None:
    """Write the file: `layers` blocks, heads of 64, half as many key heads, and a byte vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed(width))
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(width // 128)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(VOCABULARY)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    tokens += [f"token{number}" for number in range(VOCABULARY - len(tokens))]
    kinds += [1] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, 0.02 * random.standard_normal(shape, np.float32))

    add("token_embd.weight", VOCABULARY, width)
    add("output_norm.weight", width)
    add("output.weight", VOCABULARY, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", width)
        add(f"{block}.attn_q.weight", width, width)
        add(f"{block}.attn_k.weight", width // 2, width)
        add(f"{block}.attn_v.weight", width // 2, width)
        add(f"{block}.attn_output.weight", width, width)
        add(f"{block}.ffn_norm.weight", width)
        add(f"{block}.ffn_gate.weight", feed(width), width)
        add(f"{block}.ffn_up.weight", feed(width), width)
        add(f"{block}.ffn_down.weight", width, feed(width))
    part = file.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
