"""A process of long_peers.py: one engine that reads a text, answers and decodes as it is told, a line of JSON a time.

`ours` is the product; `sinks` is transformers, its cache cropped and re-rotated after StreamingLLM (Xiao et al., 2023);
`llama` is llama.cpp, run by a Python with llama-cpp-python and gguf, which also writes the GGUF file.

    python peer_worker.py '{"kind": "ours" | "sinks" | "llama", ...}'
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MOST_TOKENS = 24
"""Of an answer."""
SINKS, WINDOW, CHUNK = 16, 1024, 256
"""Of what forgets: tokens kept from the start, tokens seen at all, tokens read in one call."""
UBATCH = 512
IDLE, WIDER = 32, 32
"""Where the adapters are layers: the width of a feed-forward that does nothing, and the columns that the stream gains,
of which one is used and the rest fill up a group of Q8_0."""
CONSTANT = 1e4
"""What that column holds around an adapter. Beside it the stream's own norm, 10 to 100, changes RMSNorm's divisor by
5e-5 at most, so that the norm is a plain scaling there and a linear map can follow it."""


class Worker(Protocol):
    """An engine with one conversation."""

    def read(self, text: Sequence[str], ids: Sequence[int]) -> None:
        """Begin anew with a text, which is `ids` with the template around it."""

    def ask(self, question: str, ids: Sequence[int]) -> list[int]:
        """Answer greedily, at most MOST_TOKENS."""

    def decode(self, count: int) -> None:
        """Take in `count` tokens one by one, each to its logits."""

    def threads(self, count: int) -> None:
        """Use so many threads from now on."""


class Ours:
    """The product with its conversation memory."""

    def __init__(self, threads: int) -> None:
        from modularbase_core.config import EngineConfig
        from modularbase_core.host import build

        self._host = build(EngineConfig(threads=threads))

    def read(self, text: Sequence[str], ids: Sequence[int]) -> None:
        """Read through the host, which tokenises too."""
        self._host._forget()
        self._messages = self._host.read(iter(text), "book")

    def ask(self, question: str, ids: Sequence[int]) -> list[int]:
        """Ask general chat, so that every peer has the same layers."""
        from modularbase_core.text.template import Message
        from modularbase_core.turn.sample import SamplingConfig
        from modularbase_core.turn.stages import Token

        sampling = SamplingConfig(temperature=0, max_tokens=MOST_TOKENS)
        events = self._host.chat([*self._messages, Message("user", question)], sampling, packs=["general_chat"])
        return [event.token_id for event in events if isinstance(event, Token)]

    def decode(self, count: int) -> None:
        """Step the engine, paging and recall included."""
        engine, running = self._host.engine, self._host._conversation
        assert running is not None
        with engine.slots.hold(["general_chat"]) as slots:
            placed = {"general_chat": slots[0].content}
            for step in range(count):
                engine.decoding.step([running.sequence], [5 + step], placed)  # type: ignore[arg-type]

    def threads(self, count: int) -> None:
        """Stay with those of the start: an engine never changes them."""


class Fed(ABC):
    """A peer that is fed ids through `_feed`, which returns the likeliest next one; `_end` ends an answer."""

    _end: int

    @abstractmethod
    def _feed(self, ids: Sequence[int]) -> int:
        """Take tokens in; return the likeliest next one."""

    def ask(self, question: str, ids: Sequence[int]) -> list[int]:
        """Answer greedily."""
        said = [self._feed(ids)]
        while said[-1] != self._end and len(said) < MOST_TOKENS:
            said.append(self._feed(said[-1:]))
        return said

    def decode(self, count: int) -> None:
        """Feed tokens one by one."""
        for step in range(count):
            self._feed([5 + step])


class Sinks(Fed):
    """transformers' Llama, its DynamicCache held to sinks and a window."""

    def __init__(self, weights: str, shape: Mapping[str, Any]) -> None:
        import torch
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        self._torch, self._new_cache = torch, DynamicCache
        layers = shape["layers"]
        config = LlamaConfig(
            vocab_size=shape["vocabulary"],
            hidden_size=shape["width"],
            intermediate_size=shape["ffn"],
            num_hidden_layers=sum(layers),
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            head_dim=shape["head"],
            rms_norm_eps=shape["epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]},
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        ours = {name: torch.from_numpy(values) for name, values in np.load(weights).items()}
        self._model = LlamaForCausalLM(config).eval()
        missing = self._model.load_state_dict(_renamed(ours, shape), strict=False).missing_keys
        assert missing == ["lm_head.weight"], missing  # it is tied
        for layer, adapter in ((layers[0], "input_adapter.weight"), (layers[0] + layers[1], "output_adapter.weight")):
            matrix = ours[adapter]

            def adapt(_: object, inputs: tuple[Any, ...], matrix: Any = matrix) -> tuple[Any, ...]:
                return (torch.nn.functional.linear(inputs[0], matrix), *inputs[1:])

            self._model.model.layers[layer].register_forward_pre_hook(adapt)
        frequency = shape["theta"] ** -(torch.arange(0, shape["head"], 2, dtype=torch.float64) / shape["head"])
        self._frequency, self._end = frequency, shape["end"]

    def _feed(self, ids: Sequence[int]) -> int:
        """Take tokens in, some in a call; return the likeliest next one."""
        for first in range(0, len(ids), CHUNK):
            part = ids[first : first + CHUNK]
            held = self._cache.get_seq_length()
            if held + len(part) > WINDOW:  # by many at once, as each time all keys are turned
                self._crop(max(held + len(part) - WINDOW, CHUNK // 4))
            with self._torch.inference_mode():
                token_ids = self._torch.tensor([part])
                out = self._model(token_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    def _crop(self, count: int) -> None:
        """Let the oldest `count` after the sinks go, and turn what follows back by as many places."""
        torch = self._torch
        angle = count * self._frequency
        cos, sin = angle.cos().float(), angle.sin().float()
        for layer in self._cache.layers:
            low, high = layer.keys[:, :, SINKS + count :].chunk(2, -1)
            turned = torch.cat([low * cos + high * sin, high * cos - low * sin], -1)
            layer.keys = torch.cat([layer.keys[:, :, :SINKS], turned], 2)
            layer.values = torch.cat([layer.values[:, :, :SINKS], layer.values[:, :, SINKS + count :]], 2)

    def read(self, text: Sequence[str], ids: Sequence[int]) -> None:
        """Read chunk by chunk into an empty cache."""
        self._cache = self._new_cache()
        self._feed(ids)

    def threads(self, count: int) -> None:
        """Set torch's threads."""
        self._torch.set_num_threads(count)


class LlamaCpp(Fed):
    """llama.cpp on a GGUF file, through its C interface.

    adapters: see `Gguf`. context: positions, all of them seen. cache: f16 or q8_0. flash: by its flash attention.
    shift: at the end of the context let go of half of what follows the sinks.
    """

    def __init__(
        self,
        weights: str,
        shape: Mapping[str, Any],
        file: str,
        adapters: bool,
        context: int,
        cache: str,
        flash: bool,
        shift: bool,
    ) -> None:
        import llama_cpp

        if not Path(file).exists():
            Gguf(np.load(weights), shape, adapters=adapters).write(Path(file))
        self._llama = llama = llama_cpp
        self._silent = llama.llama_log_callback(lambda level, text, data: None)  # held, or it would be freed
        llama.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, CHUNK if shift else UBATCH, UBATCH
        if cache == "q8_0":
            params.type_k = params.type_v = llama.GGML_TYPE_Q8_0
        params.flash_attn_type, params.no_perf = int(flash), True
        self._context = llama.llama_init_from_model(self._model, params) if self._model else None
        if not self._context:
            raise SystemExit(f"llama.cpp did not take {file}")
        self._memory = llama.llama_get_memory(self._context)
        self._chunk, self._limit, self._shift = int(params.n_batch), context, shift
        self._vocabulary, self._end, self._held = shape["vocabulary"], shape["end"], 0

    def _feed(self, ids: Sequence[int]) -> int:
        """Take tokens in, some in a call; return the likeliest next one."""
        for first in range(0, len(ids), self._chunk):
            part = ids[first : first + self._chunk]
            if self._held + len(part) > self._limit:
                assert self._shift, f"{self._held + len(part)} tokens but {self._limit} positions"
                end, count = self._held, (self._held - SINKS) // 2
                self._llama.llama_memory_seq_rm(self._memory, 0, SINKS, SINKS + count)
                self._llama.llama_memory_seq_add(self._memory, 0, SINKS + count, end, -count)
                self._held -= count
            token_ids = (ctypes.c_int32 * len(part))(*part)  # the batch points into it
            code = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(token_ids, len(part)))
            assert code == 0, f"llama_decode returned {code}"
            self._held += len(part)
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def read(self, text: Sequence[str], ids: Sequence[int]) -> None:
        """Read into an empty cache."""
        self._llama.llama_memory_clear(self._memory, True)
        self._held = 0
        self._feed(ids)

    def threads(self, count: int) -> None:
        """Set the threads of decoding and of reading."""
        self._llama.llama_set_n_threads(self._context, count, count)


def _renamed(ours: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return our tensors by the names that transformers has for them."""
    named = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["norm.weight"]}
    for number, name in enumerate(_layers(shape["layers"])):
        heads = [shape["heads"], shape["kv_heads"], shape["kv_heads"]]
        query, key, value = ours[f"{name}.qkv.weight"].split([count * shape["head"] for count in heads])
        gate, up = ours[f"{name}.ffn.gate_up.weight"].chunk(2)
        of_block = {
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": ours[f"{name}.out.weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": ours[f"{name}.ffn.down.weight"],
            "input_layernorm": ours[f"{name}.attention_norm.weight"],
            "post_attention_layernorm": ours[f"{name}.ffn_norm.weight"],
        }
        named |= {f"model.layers.{number}.{one}.weight": values for one, values in of_block.items()}
    return named


def _layers(counts: Sequence[int]) -> list[str]:
    """Name our blocks from the first to the last."""
    stacks = zip(("understanding", "experts", "fusion"), counts, strict=True)
    return [f"{stack}.layers.{number}" for stack, count in stacks for number in range(count)]


class Gguf:
    """A GGUF file of the network, matrices as Q8_0: the very numbers and scales that ship.

    Without `adapters` those are left out: a Llama of the same layers. With them each is a layer without a cache, of the
    kind that DeciLM's files have (norm, matrix, residual), in a stream that is 32 columns wider.
    """

    def __init__(self, ours: Mapping[str, Any], shape: Mapping[str, Any], *, adapters: bool) -> None:
        import gguf

        self._gguf, self._ours, self._shape = gguf, ours, shape
        self._writer = gguf.GGUFWriter("", "deci" if adapters else "llama")
        self._blocks = _layers(shape["layers"])
        if adapters:
            self._blocks.insert(shape["layers"][0], "input_adapter")
            self._blocks.insert(-shape["layers"][2], "output_adapter")
        self._wider = WIDER if adapters else 0
        self._width = shape["width"] + self._wider
        # RMSNorm divides by the root of the mean over the wider stream: its weights make up for that
        self._rescale = (shape["width"] / self._width) ** 0.5

    def write(self, file: Path) -> None:
        """Write all."""
        self._describe()
        self._add("token_embd.weight", self._columns(self._ours["embedding.weight"]))
        self._add("output_norm.weight", self._norm("norm.weight"))
        for number, name in enumerate(self._blocks):
            if name.endswith("adapter"):
                self._adapter(f"blk.{number}", name)
            else:
                self._block(f"blk.{number}", name)
            if self._blocks[number + 1 : number + 2] in (["input_adapter"], ["output_adapter"]):
                self._add(f"blk.{number}.ffn_down.bias", self._level(CONSTANT))
        part = file.with_suffix(".part")
        self._writer.write_header_to_file(part)
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()
        part.replace(file)

    def _describe(self) -> None:
        writer, shape = self._writer, self._shape
        adapts = [name.endswith("adapter") for name in self._blocks]
        writer.add_vocab_size(shape["vocabulary"])
        writer.add_tokenizer_model("none")
        writer.add_context_length(WINDOW)
        writer.add_embedding_length(self._width)
        writer.add_block_count(len(adapts))
        # an adapter has heads but no keys: that is how a file says that a matrix takes attention's place
        writer.add_head_count(shape["heads"])
        writer.add_head_count_kv([0 if one else shape["kv_heads"] for one in adapts])
        writer.add_feed_forward_length([IDLE if one else shape["ffn"] for one in adapts])
        writer.add_key_length(shape["head"])
        writer.add_value_length(shape["head"])
        writer.add_rope_dimension_count(shape["head"])
        writer.add_rope_freq_base(shape["theta"])
        writer.add_layer_norm_rms_eps(shape["epsilon"] * self._rescale**2)

    def _block(self, block: str, name: str) -> None:
        ours, head = self._ours, self._shape["head"]
        heads = [self._shape["heads"], self._shape["kv_heads"], self._shape["kv_heads"]]
        parts = np.split(ours[f"{name}.qkv.weight"], np.cumsum(heads)[:-1] * head)
        for part, count, values in zip(("q", "k", "v"), heads, parts, strict=True):
            if part != "v":  # these architectures rotate neighbours, we rotate halves
                values = values.reshape(count, 2, head // 2, -1).swapaxes(1, 2).reshape(values.shape)
            self._add(f"{block}.attn_{part}.weight", self._columns(values))
        self._add(f"{block}.attn_norm.weight", self._norm(f"{name}.attention_norm.weight"))
        self._add(f"{block}.attn_output.weight", self._rows(ours[f"{name}.out.weight"]))
        self._add(f"{block}.ffn_norm.weight", self._norm(f"{name}.ffn_norm.weight"))
        gate, up = np.split(ours[f"{name}.ffn.gate_up.weight"], 2)
        self._add(f"{block}.ffn_gate.weight", self._columns(gate))
        self._add(f"{block}.ffn_up.weight", self._columns(up))
        self._add(f"{block}.ffn_down.weight", self._rows(ours[f"{name}.ffn.down.weight"]))

    def _adapter(self, block: str, name: str) -> None:
        """Add a linear map; the feed-forward after it, which a file must have, only takes the constant away."""
        width = self._width
        change = self._ours[f"{name}.weight"] - np.eye(self._shape["width"])  # the stream itself is added
        self._add(f"{block}.attn_norm.weight", np.full(width, CONSTANT / width**0.5))
        self._add(f"{block}.attn_output.weight", np.pad(change, (0, self._wider)), exact=True)
        self._add(f"{block}.ffn_norm.weight", np.zeros(width))
        for part, size in (("ffn_gate", (IDLE, width)), ("ffn_up", (IDLE, width)), ("ffn_down", (width, IDLE))):
            self._add(f"{block}.{part}.weight", np.zeros(size))
        self._add(f"{block}.ffn_down.bias", self._level(-CONSTANT))

    def _add(self, name: str, values: Any, *, exact: bool = False) -> None:
        values = np.ascontiguousarray(values, np.float32)
        if exact or values.ndim == 1:
            self._writer.add_tensor(name, values)
        else:
            kind = self._gguf.GGMLQuantizationType.Q8_0
            self._writer.add_tensor(name, self._gguf.quants.quantize(values, kind), raw_dtype=kind)

    def _columns(self, values: Any) -> Any:
        return np.pad(values, ((0, 0), (0, self._wider)))

    def _rows(self, values: Any) -> Any:
        return np.pad(values, ((0, self._wider), (0, 0)))

    def _norm(self, name: str) -> Any:
        return np.pad(self._ours[name] * self._rescale, (0, self._wider))

    def _level(self, constant: float) -> Any:
        """Return the bias that adds a constant to the first new column."""
        return constant * np.eye(1, self._width, self._shape["width"])[0]


def main(described: dict[str, Any]) -> None:
    """Load, say so, then do as each line says, and tell how many seconds it took."""
    kinds: dict[str, Any] = {"ours": Ours, "sinks": Sinks, "llama": LlamaCpp}
    worker: Worker = kinds[described.pop("kind")](**described)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        do = getattr(worker, order.pop("do"))
        begun = time.perf_counter()
        result = do(**order)
        print(json.dumps({"seconds": time.perf_counter() - begun, "result": result}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
