"""A process of speed.py: one engine with a network of Qwen2-0.5B's shape, timed as it is told, a line of JSON a time.

`ours` is the product over an imported checkpoint; `llama` is llama.cpp, run by a Python with llama-cpp-python and gguf,
which also writes the GGUF file; `torch` is transformers in bfloat16; `machine` reads memory and multiplies bytes with
kernels of TVM, as fast as that goes.

    python speed_worker.py '{"kind": "ours" | "llama" | "torch" | "machine", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SHAPE = {"width": 896, "layers": 24, "ffn": 4864, "vocabulary": 151936, "heads": 14, "kv_heads": 2, "head": 64}
WINDOW = 2048
WARM = 8
"""Steps before those that are timed."""


class Worker(Protocol):
    """An engine that is timed; each returns seconds."""

    def prefill(self, tokens: int) -> float:
        """Begin anew with so many tokens, to the logits of the last."""

    def decode(self, steps: int) -> float:
        """Go on by so many tokens."""


def _ids(count: int) -> list[int]:
    found: list[int] = np.random.default_rng(0).integers(0, SHAPE["vocabulary"], count).tolist()
    return found


class Ours:
    """The product's engine: scheduling and sampling apart, all that a token takes."""

    def __init__(self, packs: dict[str, str], cache: str, precision: str, threads: int, level: str = "") -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tiny_packs import catalog_of

        from modularbase_core.config import EngineConfig
        from modularbase_core.host import Parts

        if level:
            _pretend(level)
        config = EngineConfig(
            cache_dir=Path(cache),
            threads=threads,
            base_precision=precision,
            pack_precision=precision,
            memory_bytes=16 << 30,
            hot_tokens=24 * WINDOW,
        )
        self._parts = Parts(config, catalog_of({name: Path(path) for name, path in packs.items()}), None)
        self._engine = self._parts.engine()
        self._held = self._engine.slots.hold([self._parts.lineup.general_chat.id])
        self._placed = {slot.pack_id: slot.content for slot in self._held.__enter__()}
        self._running: list[Any] = []

    def prefill(self, tokens: int) -> float:
        """Time one sequence."""
        return self._begin(1, tokens)

    def decode(self, steps: int) -> float:
        """Time steps of the sequences that were begun last."""
        self._step(WARM)
        begun = time.perf_counter()
        self._step(steps)
        return time.perf_counter() - begun

    def batch(self, sequences: int, steps: int) -> float:
        """Time steps of several sequences of 32 tokens."""
        self._begin(sequences, 32)
        return self.decode(steps)

    def read(self) -> int:
        """Return the bytes of weights that a step of one sequence reads; the embedding is the head's matrix."""
        from modularbase_core.device.layouts import planned_bytes

        metas = [one.meta for one in self._parts.executables.values()]
        return sum(planned_bytes(meta) for meta in metas if meta.architecture.kind != "router")

    def _begin(self, sequences: int, tokens: int) -> float:
        from modularbase_core.context.page import PageTable
        from modularbase_core.turn.route import force
        from modularbase_core.turn.sequence import Sequence as Conversation

        for one in self._running:
            self._engine.release(one)
        route = force(list(self._placed))
        self._running = [Conversation(PageTable(self._parts.base.window), route=route) for _ in range(sequences)]
        begun = time.perf_counter()
        for one in self._running:
            self._engine.understanding.ingest(one, _ids(tokens))
            self._engine.decoding.prefill(one, self._placed)
        return time.perf_counter() - begun

    def _step(self, steps: int) -> None:
        for step in range(steps):
            self._engine.decoding.step(self._running, [5 + step] * len(self._running), self._placed)


def _pretend(level: str) -> None:
    """Compile for a lesser processor of the same kind, without what it has beyond `level`."""
    from dataclasses import replace

    from modularbase_core.device import target
    from modularbase_core.host import parts

    lesser = replace(target.cpu_target(), level=level, features=())
    parts.cpu_target = lambda: lesser  # type: ignore[attr-defined]


class LlamaCpp:
    """llama.cpp, as its own programs set it up: flash attention, float16 keys and values."""

    def __init__(self, file: str, form: str, threads: int) -> None:
        if not Path(file).exists():
            write_gguf(Path(file), form)
        import llama_cpp

        self._api, self._position = llama_cpp, 0
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        loaded = llama_cpp.llama_model_load_from_file(file.encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = WINDOW, WINDOW, 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = 1
        self._context = llama_cpp.llama_init_from_model(loaded, context)
        self._batch = llama_cpp.llama_batch_init(WINDOW, 0, 1)

    def features(self) -> str:
        """Return what it was built with."""
        return str(self._api.llama_print_system_info().decode())

    def prefill(self, tokens: int) -> float:
        """Time one call."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._position = 0
        return self._feed(_ids(tokens))

    def decode(self, steps: int) -> float:
        """Time one call a token."""
        for step in range(WARM):
            self._feed([5 + step])
        return sum(self._feed([5 + step]) for step in range(steps))

    def _feed(self, ids: Sequence[int]) -> float:
        batch, begun = self._batch, time.perf_counter()
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row] = token, self._position + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.logits[row] = row == len(ids) - 1
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp did not decode")
        self._api.llama_get_logits_ith(self._context, len(ids) - 1)[0]
        self._position += len(ids)
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
        config = Qwen2Config(
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
        self._model = Qwen2ForCausalLM(config).to(torch.bfloat16).eval()

    def prefill(self, tokens: int) -> float:
        """Time one call."""
        self._cache = self._new_cache()
        return self._feed(_ids(tokens))

    def decode(self, steps: int) -> float:
        """Time one call a token."""
        for step in range(2):
            self._feed([5 + step])
        return sum(self._feed([5 + step]) for step in range(steps))

    def _feed(self, ids: Sequence[int]) -> float:
        torch, begun = self._torch, time.perf_counter()
        with torch.no_grad():
            self._model(torch.tensor([ids]), past_key_values=self._cache, logits_to_keep=1)
        return time.perf_counter() - begun


class Machine:
    """What the machine itself can do, with as many threads."""

    def __init__(self, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        import tvm
        from machine_kernels import multiply, read
        from modularbase_compiler.target import host_target

        from modularbase_core.device.target import cpu_target

        target = host_target(cpu_target())
        self._threads = threads
        self._read, self._multiply = (tvm.compile(kernel, target) for kernel in (read(threads), multiply(threads)))
        # as weights lie: aligned, and in memory of numpy, which asks for large pages
        raw = np.ones((threads << 28) + 64, np.uint8)
        self._memory = tvm.runtime.from_dlpack(raw[-raw.ctypes.data % 64 :][: threads << 28].reshape(threads, -1, 64))
        self._sums = tvm.runtime.tensor(np.zeros((threads, 16), np.int32))

    def read(self) -> float:
        """Return bytes a second, read from memory that no cache holds."""
        return (self._threads << 28) / _best(lambda: self._read(self._memory, self._sums), 5)

    def multiply(self) -> float:
        """Return operations a second (two for a product and its addition) of int8."""
        rounds = 1 << 20
        return self._threads * rounds * 8 * 128 / _best(lambda: self._multiply(rounds, self._sums), 3)


def _best(run: Any, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main(described: dict[str, Any]) -> None:
    """Load, say so, then do as each line says."""
    kinds: dict[str, Any] = {"ours": Ours, "llama": LlamaCpp, "torch": Torch, "machine": Machine}
    worker = kinds[described.pop("kind")](**described)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"result": getattr(worker, order.pop("do"))(**order)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
