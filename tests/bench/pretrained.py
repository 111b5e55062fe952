"""What a pretrained checkpoint saves: a small one is trained here, taken apart, and its fusion layers alone trained.

    python tests/bench/pretrained.py DATA [--pretraining 2000000] [--tokens 1000000] [--threads 1]

1. "pretrained": a network of Qwen2's shape (identity adapters, held still) learns from texts, is written as a
   checkpoint in the layout of Hugging Face and taken apart by `modularbase import`'s own code. Its cost is another's.
2. "from scratch": the same shape learns base, general chat and fusion together from conversations, --tokens of them,
   and once more --pretraining.
3. over the checkpoint, with a fifth, a half and all of those tokens: fusion alone; general chat and fusion; all.

Perplexity is of held-out answers. Operations are 2 a weight and token forward, 4 more backward where something before
or at that weight learns, and 2 of those 4 for the weight itself. Also told: whom the router that nothing has trained
sends messages to, over the shipped nano base. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from modularbase_core.graph.networks import Base, Pack, Router
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.keys import routing_keys, scores
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.encoding import Documents, encode_sources, join
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.loop import Batch, train
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.packing import windows
from modularbase_core.train.pretrained.decompose import Wanted, decompose
from modularbase_core.train.pretrained.first_router import first_router, ordinary_messages, router_shape
from modularbase_core.train.recipe import Source
from modularbase_core.train.router import queries, understand_messages
from modularbase_core.train.schedule import Schedule
from modularbase_core.train.ship import load_shipped

BLOCKS = Blocks(hidden_size=128, heads=4, kv_heads=2, head_size=32, ffn_size=256, qkv_bias=True)
SPLIT = (2, 3, 2)
WINDOW, BATCH_TOKENS = 256, 4096
TEXTS = ("base/books_train-00.jsonl.xz", "base/en_more_train-00.jsonl.xz", "base/en_docs_train.jsonl.xz")
TALK, HELD_OUT = (
    ("chat/train.jsonl.xz", "chat/more_train.jsonl.xz"),
    ("chat/valid.jsonl.xz", "chat/more_valid.jsonl.xz"),
)
SHARES = (0.2, 0.5, 1.0)
LEARNT = {
    "fusion": ("fusion",),
    "general chat, fusion": ("pack", "fusion"),
    "all": ("embedding", "understanding", "pack", "fusion", "head"),
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DOMAINS = ("python", "medical", "legal", "creative", "reasoning")


@dataclass(frozen=True)
class Material:
    """What is learnt from and measured on, as documents of token ids."""

    texts: Documents
    talk: Documents
    longer_talk: Documents
    held_out: Documents


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pretraining", type=int, default=2_000_000)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    nano = discover().find("nano-base").pack
    tokenizer = Tokenizer.from_file(str(nano.tokenizer))
    material = read(options.data, tokenizer, options.pretraining, options.tokens)
    routed = first_routes(options.data, tokenizer)
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = network()
        for adapter in (model.pack.input_adapter, model.pack.output_adapter):
            adapter.requires_grad_(False)
        rows.append(run("pretrained", model, material.texts, options.pretraining, material, work))
        write_checkpoint(model, nano.tokenizer, work / "checkpoint")
        wanted = Wanted(
            name="bench", understanding_layers=SPLIT[0], fusion_layers=SPLIT[2], window_tokens=1024, form="fp32"
        )
        decompose(work / "checkpoint", work / "apart", wanted)
        rows.append({**rows[0], "what": "taken apart", "tokens": 0, "seconds": 0.0, "operations": 0.0})
        rows[-1]["perplexity"] = math.exp(held_out_loss(imported(work), material.held_out))
        rows.append(run("from scratch", network(), material.talk, options.tokens, material, work))
        rows.append(run("from scratch, longer", network(), material.longer_talk, options.pretraining, material, work))
        for what, parts in LEARNT.items():
            for share in SHARES:
                model = imported(work)
                model.learn_only(parts)
                tokens = int(share * options.tokens)
                rows.append(run(f"{what}, {share:.0%}", model, material.talk, tokens, material, work))
    print(f"{'':<28}{'tokens':>10}{'seconds':>10}{'10^12 ops':>11}{'perplexity':>12}")
    for row in rows:
        print(
            f"{row['what']:<28}{row['tokens']:>10}{row['seconds']:>10.0f}{row['operations']:>11.2f}{row['perplexity']:>12.2f}"
        )
    for name, share in routed.items():
        print(f"{name:<28}{share:>10.2f}")
    print(json.dumps({"runs": rows, "first_router": routed}))


def read(data: Path, tokenizer: Tokenizer, texts: int, talk: int) -> Material:
    """Encode texts, conversations and held-out ones; of conversations the answers count."""

    def documents(files: tuple[str, ...], tokens: int, languages: tuple[str, ...] = ()) -> Documents:
        source = Source(files=files, tokens=tokens, languages=languages)
        return join(encode_sources([source], data, tokenizer, response_only=bool(languages), seed=1))

    of_talk = (documents(TALK, count, ("en",)) for count in (talk, texts))
    return Material(documents(TEXTS, texts), *of_talk, documents(HELD_OUT, 60_000, ("en",)))


def network() -> Whole:
    """Make the network, not trained."""
    torch.manual_seed(1)
    base = BaseArchitecture(blocks=BLOCKS, vocabulary_size=8192, understanding_layers=SPLIT[0], fusion_layers=SPLIT[2])
    pack = PackArchitecture(base_hidden_size=BLOCKS.hidden_size, blocks=BLOCKS, layers=SPLIT[1])
    return Whole(Base(base), Pack(pack), 0, frozen_base=False)


def imported(work: Path) -> Whole:
    """Load what the checkpoint was taken apart into."""
    base, pack = (load_shipped(work / "apart/modularbase_bench" / name) for name in ("base", "general_chat"))
    assert isinstance(base, Base)
    assert isinstance(pack, Pack)
    return Whole(base.requires_grad_(True), pack.requires_grad_(True), 0, frozen_base=False)


def run(
    what: str, model: Whole, documents: Documents, tokens: int, material: Material, work: Path
) -> dict[str, float | str]:
    """Train a model on so many tokens; return what it cost and what it then knows."""
    steps = max(1, tokens // BATCH_TOKENS)
    schedule = Schedule(steps=steps, warmup_steps=max(1, min(20, steps // 5)), decay_share=0.7)

    def batches(step: int) -> Iterator[Batch]:
        return windows(documents, WINDOW, BATCH_TOKENS // WINDOW, begin=0, seed=1, start=step)

    began = time.perf_counter()
    name = "".join(letter if letter.isalnum() else "-" for letter in what)
    train(model, Loss(model, compiled=False), batches, schedule, work / name / "checkpoint.pt", quiet=True)
    seconds = time.perf_counter() - began
    perplexity = math.exp(held_out_loss(model, material.held_out))
    count = steps * BATCH_TOKENS
    print(f"{what}: {perplexity:.2f} after {count} tokens, {seconds:.0f} s", flush=True)
    operations = count * operations_a_token(model) / 1e12
    return {"what": what, "tokens": count, "seconds": seconds, "operations": operations, "perplexity": perplexity}


@torch.no_grad()
def held_out_loss(model: Whole, documents: Documents) -> float:
    """Return the mean loss of the held-out answers' tokens."""
    loss_of, total, count = Loss(model, compiled=False), 0.0, 0
    for (ids, learn), _ in zip(windows(documents, WINDOW, 16, begin=0, seed=0), range(12), strict=False):
        counted = int(learn[:, 1:].sum())
        total += loss_of(ids, learn).item() * counted
        count += counted
    return total / count


def operations_a_token(model: Whole) -> float:
    """Count multiplications and additions with weights, in the order in which a token meets them."""
    base = model.base
    met = [*base.understanding.parameters(), *model.pack.parameters(), *base.fusion.parameters(), base.head_weight()]
    total, reached = 0.0, base.embedding.weight.requires_grad
    for weight in met:
        reached = reached or weight.requires_grad
        total += weight.numel() * (2 + 2 * reached + 2 * weight.requires_grad)
    return total


def write_checkpoint(model: Whole, tokenizer: Path, directory: Path) -> None:
    """Write a network with identity adapters in the layout of Hugging Face."""
    directory.mkdir()
    state, tensors = model.state_dict(), {}
    tensors["model.embed_tokens.weight"] = state["base.embedding.weight"]
    tensors["model.norm.weight"] = state["base.norm.weight"]
    heads, kv_heads = BLOCKS.heads * BLOCKS.head_size, BLOCKS.kv_heads * BLOCKS.head_size
    stacks = ["base.understanding"] * SPLIT[0] + ["pack.experts"] * SPLIT[1] + ["base.fusion"] * SPLIT[2]
    for layer, stack in enumerate(stacks):
        ours, theirs = f"{stack}.layers.{layer - stacks.index(stack)}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = state[f"{ours}qkv.{kind}"].split([heads, kv_heads, kv_heads])
            for name, part in zip("qkv", parts, strict=True):
                tensors[f"{theirs}self_attn.{name}_proj.{kind}"] = part
        gate, up = state[f"{ours}ffn.gate_up.weight"].chunk(2)
        tensors[f"{theirs}mlp.gate_proj.weight"], tensors[f"{theirs}mlp.up_proj.weight"] = gate, up
        tensors[f"{theirs}mlp.down_proj.weight"] = state[f"{ours}ffn.down.weight"]
        tensors[f"{theirs}self_attn.o_proj.weight"] = state[f"{ours}out.weight"]
        tensors[f"{theirs}input_layernorm.weight"] = state[f"{ours}attention_norm.weight"]
        tensors[f"{theirs}post_attention_layernorm.weight"] = state[f"{ours}ffn_norm.weight"]
    save_file({name: value.contiguous() for name, value in tensors.items()}, directory / "model.safetensors")
    config = {
        "model_type": "qwen2",
        "hidden_size": BLOCKS.hidden_size,
        "intermediate_size": BLOCKS.ffn_size,
        "num_hidden_layers": sum(SPLIT),
        "num_attention_heads": BLOCKS.heads,
        "num_key_value_heads": BLOCKS.kv_heads,
        "max_position_embeddings": 1024,
        "rope_theta": BLOCKS.rope_theta,
        "rms_norm_eps": BLOCKS.norm_epsilon,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    settings = {"chat_template": TEMPLATE, "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def first_routes(data: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Return, at two thresholds, the share of messages that a router nobody trained sends where they belong.

    Over the shipped nano base: 96 examples a domain make its keys, held-out messages are routed.
    """
    base = load_shipped(discover().find("nano-base").pack.directory)
    assert isinstance(base, Base)

    def rows(texts: list[str]) -> list[np.ndarray]:
        hidden = understand_messages(base, tokenizer, texts, quiet=True)
        return [
            hidden.rows[first:last].float().numpy() for first, last in zip(hidden.begin, hidden.begin[1:], strict=False)
        ]

    shape = router_shape(256)
    weights, background = first_router(rows(ordinary_messages()), shape)
    router = Router(shape)
    router.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def asked(messages: list[Labelled]) -> np.ndarray:
        return queries(router, understand_messages(base, tokenizer, [one.text for one in messages], quiet=True))

    def labelled(part: str) -> list[Labelled]:
        return read_messages([Source(files=(f"router/domains_{part}.jsonl.xz",), tokens=10**6)], data, data, 1)

    examples = {domain: [one for one in labelled("train") if one.domain == domain][:96] for domain in DOMAINS}
    keys = {
        name: routing_keys(asked(own), background["others"], background["background"]) for name, own in examples.items()
    }
    held_out = labelled("test")
    random.Random(0).shuffle(held_out)
    held_out = held_out[:900]
    made = asked(held_out)
    each = np.stack(
        [
            scores(made, one["keys"], float(one["scale"][0]), float(one["bias"][0]), background["background"])
            for one in keys.values()
        ]
    )
    told = {}
    for threshold in (0.3, 0.7):
        chosen = [
            DOMAINS[best] if top >= threshold else "general"
            for best, top in zip(each.argmax(0), each.max(0), strict=True)
        ]
        for group in ("domains", "general"):
            right = [
                name == one.domain
                for name, one in zip(chosen, held_out, strict=True)
                if (one.domain == "general") == (group == "general")
            ]
            told[f"first router, {group}, {threshold:g}"] = sum(right) / len(right)
    return told


if __name__ == "__main__":
    main()
