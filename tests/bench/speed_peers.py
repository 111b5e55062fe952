"""The peers of speed.py, each a process of its own: llama.cpp, and transformers' Qwen2 in torch, eager or compiled.

llama.cpp runs under a Python with llama-cpp-python and gguf, which also writes the GGUF file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from speed_shape import BATCH_PROMPT, SHAPE, WARM, WINDOW, random_ids

MOST_SEQUENCES = 32
TORCH_WARM = 2


class LlamaCpp:
    """llama.cpp, as its own programs set it up: flash attention, float16 keys and values."""

    def __init__(self, file: str, form: str, threads: int) -> None:
        if not Path(file).exists():
            write_gguf(Path(file), form)
        import llama_cpp

        self._api, self._file, self._threads = llama_cpp, file, threads
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._loaded = llama_cpp.llama_model_load_from_file(file.encode(), model)
        self._single = self._context(WINDOW, 1)
        self._several: Any = None
        self._batch = llama_cpp.llama_batch_init(WINDOW, 0, 1)
        self._position = 0

    def features(self) -> str:
        """Return what it was built with."""
        return str(self._api.llama_print_system_info().decode())

    def read(self) -> int:
        """Return the bytes of weights that a step reads."""
        return Path(self._file).stat().st_size

    def prefill(self, tokens: int) -> float:
        """Time one call."""
        self._forget(self._single)
        return self._feed(self._single, [random_ids(tokens)])

    def decode(self, steps: int) -> float:
        """Time one call a token."""
        return self._go_on(self._single, 1, steps)

    def batch(self, sequences: int, steps: int) -> float:
        """Time steps of several sequences, each with a cache of its own."""
        # a context of its own: what it holds for 32 sequences must not weigh on one
        self._several = self._several or self._context(8 * BATCH_PROMPT * MOST_SEQUENCES, MOST_SEQUENCES)
        self._forget(self._several)
        self._feed(self._several, [random_ids(BATCH_PROMPT)] * sequences)
        return self._go_on(self._several, sequences, steps)

    def _context(self, tokens: int, sequences: int) -> Any:
        wanted = self._api.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max = tokens, WINDOW, 512, sequences
        wanted.n_threads = wanted.n_threads_batch = self._threads
        wanted.flash_attn_type = 1
        return self._api.llama_init_from_model(self._loaded, wanted)

    def _forget(self, context: Any) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        self._position = 0

    def _go_on(self, context: Any, sequences: int, steps: int) -> float:
        for step in range(WARM):
            self._feed(context, [[5 + step]] * sequences)
        return sum(self._feed(context, [[5 + step]] * sequences) for step in range(steps))

    def _feed(self, context: Any, ids: Sequence[Sequence[int]]) -> float:
        """Take as many tokens into every sequence, to the logits of the last ones."""
        batch, begun = self._batch, time.perf_counter()
        batch.n_tokens = sum(map(len, ids))
        for row, (number, place) in enumerate((n, p) for n, one in enumerate(ids) for p in range(len(one))):
            batch.token[row], batch.pos[row] = ids[number][place], self._position + place
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
            batch.logits[row] = place == len(ids[number]) - 1
        if self._api.llama_decode(context, batch):
            raise RuntimeError("llama.cpp did not decode")
        self._api.llama_get_logits_ith(context, batch.n_tokens - 1)[0]
        self._position += len(ids[0])
        return time.perf_counter() - begun


def write_gguf(file: Path, form: str) -> None:
    """Write random weights of the shape, all matrices as `form` ("Q4_0", "Q8_0")."""
    import gguf

    kind = getattr(gguf.GGMLQuantizationType, form)
    writer, random = gguf.GGUFWriter("", "qwen2"), np.random.default_rng(0)
    width, ffn, kv = SHAPE["width"], SHAPE["ffn"], SHAPE["kv_heads"] * SHAPE["head"]
    writer.add_vocab_size(SHAPE["vocabulary"])
    writer.add_tokenizer_model("none")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(width)
    writer.add_block_count(SHAPE["layers"])
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_feed_forward_length(ffn)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)

    def add(name: str, *shape: int) -> None:
        values = 0.02 * random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values + ("norm" in name))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", SHAPE["vocabulary"], width)
    add("output_norm.weight", width)
    for layer in range(SHAPE["layers"]):
        block = f"blk.{layer}"
        for part, rows in (("q", width), ("k", kv), ("v", kv)):
            add(f"{block}.attn_{part}.weight", rows, width)
            add(f"{block}.attn_{part}.bias", rows)
        add(f"{block}.attn_output.weight", width, width)
        add(f"{block}.attn_norm.weight", width)
        add(f"{block}.ffn_norm.weight", width)
        add(f"{block}.ffn_gate.weight", ffn, width)
        add(f"{block}.ffn_up.weight", ffn, width)
        add(f"{block}.ffn_down.weight", width, ffn)
    part = file.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(file)


class Torch:
    """transformers' Qwen2 in bfloat16, eager."""

    def __init__(self, threads: int) -> None:
        import torch
        from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

        torch.set_num_threads(threads)
        self._config = Qwen2Config(
            vocab_size=SHAPE["vocabulary"],
            hidden_size=SHAPE["width"],
            intermediate_size=SHAPE["ffn"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            num_key_value_heads=SHAPE["kv_heads"],
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        self._torch, self._new_cache = torch, DynamicCache
        self._model: Any = Qwen2ForCausalLM(self._config).to(torch.bfloat16).eval()

    def read(self) -> int:
        """Return the bytes of weights that a step reads."""
        return sum(one.numel() * one.element_size() for one in self._model.parameters())

    def prefill(self, tokens: int) -> float:
        """Time one call."""
        self._cache = self._new_cache()
        return self._feed([random_ids(tokens)])

    def decode(self, steps: int) -> float:
        """Time one call a token."""
        return self._go_on(1, steps)

    def batch(self, sequences: int, steps: int) -> float:
        """Time steps of several sequences."""
        self._cache = self._new_cache()
        self._feed([random_ids(BATCH_PROMPT)] * sequences)
        return self._go_on(sequences, steps)

    def _go_on(self, sequences: int, steps: int) -> float:
        for step in range(TORCH_WARM):
            self._feed([[5 + step]] * sequences)
        return sum(self._feed([[5 + step]] * sequences) for step in range(steps))

    def _feed(self, ids: Sequence[Sequence[int]]) -> float:
        torch, begun = self._torch, time.perf_counter()
        with torch.no_grad():
            self._model(torch.tensor(ids), past_key_values=self._cache, logits_to_keep=1)
        return time.perf_counter() - begun


class Compiled(Torch):
    """The same through `torch.compile`, with a cache of one length, so that a prompt and a step are a program each."""

    def __init__(self, threads: int, prompt: int, steps: int) -> None:
        """Compile for a prompt of so many tokens and that many steps: this takes minutes, and nothing after it does."""
        super().__init__(threads)
        from transformers import StaticCache

        self._prompt = prompt
        self._cache = StaticCache(config=self._config, max_cache_len=prompt + TORCH_WARM + steps)
        heads = {"num_heads": SHAPE["kv_heads"], "head_dim": SHAPE["head"]}
        self._cache.early_initialization(batch_size=1, dtype=self._torch.bfloat16, device="cpu", **heads)
        self._weights = super().read()
        self._model = self._torch.compile(self._model, dynamic=False)
        for _ in range(2):  # the second shows whether a program of the first still fits
            self._begin(prompt)
            super().decode(steps)
        self._programs = self._compiled()

    def read(self) -> int:
        """Return the bytes of weights that a step reads."""
        return self._weights

    def prefill(self, tokens: int) -> float:
        """Time one call."""
        assert tokens == self._prompt, f"compiled for a prompt of {self._prompt} tokens"
        return self._sound(self._begin(tokens))

    def decode(self, steps: int) -> float:
        """Time one call a token."""
        return self._sound(super().decode(steps))

    def _begin(self, tokens: int) -> float:
        self._cache.reset()
        return self._feed([random_ids(tokens)])

    def _sound(self, seconds: float) -> float:
        if self._compiled() != self._programs:
            raise RuntimeError("torch compiled while it was timed")
        return seconds

    def _compiled(self) -> int:
        return int(self._torch._dynamo.utils.counters["stats"]["unique_graphs"])
