"""Decode and prefill of a network of Qwen2-0.5B's shape, beside llama.cpp and torch, and beside the machine's limits.

Random weights; ours is an imported checkpoint that runs through the engine (understanding, general chat, fusion, head).
Every engine is a process of its own; they are timed in turn, round after round, memory's speed with them. The share of
the ceiling counts the bytes that a token must read (weights with scales, keys and values) against that speed.

    python tests/bench/speed.py FOLDER [--llama-python PYTHON] [--rounds 5] [--threads 0] [--level x86-64-v3]

FOLDER keeps what is made once: checkpoint, packs, GGUF files, compiled programs (3 GB). A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from speed_worker import SHAPE, WARM, WINDOW

sys.path.insert(0, str(Path(__file__).parents[1]))
from qwen2_directory import write_checkpoint

from modularbase_core.device.target import physical_cores
from modularbase_core.train.pretrained.decompose import Wanted, decompose

PROMPT, STEPS, BATCHES = 512, 32, (1, 4, 16)
PAIRS = {"int4": "Q4_0", "int8": "Q8_0"}
QUIET_SECONDS = 0.3  # between two engines: threads that wait for more work spin a while


def main() -> None:
    """Measure and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of every engine; 0 is one per physical core")
    parser.add_argument("--level", default="", help="compile ours for a lesser processor, such as x86-64-v3")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    threads = options.threads or physical_cores()
    packs = {name: str(path) for name, path in make_packs(options.folder).items()}
    described: dict[str, dict[str, Any]] = {"machine": {"kind": "machine", "threads": threads}}
    for precision, form in PAIRS.items():
        cache = str(options.folder / "cache")
        ours = {"kind": "ours", "packs": packs, "cache": cache, "precision": precision, "level": options.level}
        described[f"ours {precision}"] = {**ours, "threads": threads}
        if options.llama_python:
            file = str(options.folder / f"{form}.gguf")
            described[f"llama.cpp {form}"] = {"kind": "llama", "file": file, "form": form, "threads": threads}
    if not options.no_torch:
        described["torch bf16"] = {"kind": "torch", "threads": threads}
    engines = {name: Engine(one, options.llama_python) for name, one in described.items()}
    out: dict[str, Any] = {"threads": threads, "level": options.level, **measure(engines, options.rounds)}
    for one in engines.values():
        one.close()
    show(out)


def make_packs(folder: Path) -> dict[str, Path]:
    """Make a checkpoint with random weights and take it apart, once."""
    project, checkpoint = folder / "project", folder / "checkpoint"
    if not project.exists():
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
        sizes = dict(zip(names, (SHAPE[key] for key in ("width", "layers", "ffn", "vocabulary")), strict=True))
        heads = {"num_attention_heads": SHAPE["heads"], "num_key_value_heads": SHAPE["kv_heads"]}
        write_checkpoint(checkpoint, dtype=torch.bfloat16, max_position_embeddings=WINDOW, **sizes, **heads)
        decompose(checkpoint, project, Wanted(name="speed", form="int8", window_tokens=WINDOW), lambda *_: None)
        (checkpoint / "model.safetensors").unlink()
    return {path.parent.name: path.parent for path in project.rglob("manifest.json")}


class Engine:
    """A worker process."""

    def __init__(self, described: dict[str, Any], llama_python: str | None) -> None:
        python = llama_python if described["kind"] == "llama" else sys.executable
        command = [str(python), str(Path(__file__).with_name("speed_worker.py")), json.dumps(described)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, do: str, **how: Any) -> Any:
        """Have the worker do something; return what came of it."""
        assert self._process.stdin is not None
        time.sleep(QUIET_SECONDS)
        self._process.stdin.write(json.dumps({"do": do, **how}) + "\n")
        self._process.stdin.flush()
        return self._answer()["result"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self._process.wait()}")
        return json.loads(line)


def measure(engines: dict[str, Engine], rounds: int) -> dict[str, Any]:
    """Time all in turn; the first round warms up."""
    machine = engines["machine"]
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        found = {("machine", "read"): machine.ask("read"), ("machine", "multiply"): machine.ask("multiply")}
        for name, engine in engines.items():
            if name == "machine":
                continue
            found[name, "prefill"] = PROMPT / engine.ask("prefill", tokens=PROMPT)
            found[name, "decode"] = STEPS / engine.ask("decode", steps=STEPS)
            if name.startswith("ours"):
                for size in BATCHES:
                    found[name, f"batch {size}"] = size * STEPS / engine.ask("batch", sequences=size, steps=STEPS)
        if number:
            for key, value in found.items():
                taken.setdefault(key, []).append(value)
    out: dict[str, Any] = {f"{name}: {what}": statistics.median(values) for (name, what), values in taken.items()}
    kv_bytes = 4 * 2 * SHAPE["layers"] * SHAPE["kv_heads"] * SHAPE["head"] * (PROMPT + WARM + STEPS // 2)
    for precision, form in PAIRS.items():
        ours, peer = f"ours {precision}", f"llama.cpp {form}"
        read = engines[ours].ask("read") + kv_bytes
        rates = zip(taken[ours, "decode"], taken["machine", "read"], strict=True)
        out[f"{ours}: MB a token"] = read / 1e6
        out[f"{ours}: share of the ceiling"] = statistics.median(read * tokens / speed for tokens, speed in rates)
        for what in ("prefill", "decode"):
            if (peer, what) in taken:
                pairs = zip(taken[ours, what], taken[peer, what], strict=True)
                out[f"{ours}: {what} x {peer}"] = statistics.median(one / other for one, other in pairs)
            if ("torch bf16", what) in taken:
                pairs = zip(taken[ours, what], taken["torch bf16", what], strict=True)
                out[f"{ours}: {what} x torch bf16"] = statistics.median(one / other for one, other in pairs)
        out[f"{ours}: batch 16 x batch 1"] = out[f"{ours}: batch 16"] / out[f"{ours}: batch 1"]
        operations = 2 * (SHAPE["layers"] * _matrices(SHAPE["width"], SHAPE["ffn"]))
        out[f"{ours}: prefill's share of int8 products"] = (
            out[f"{ours}: prefill"] * operations / out["machine: multiply"]
        )
    return out


def _matrices(width: int, ffn: int) -> int:
    """Return the weights of a layer's matrices."""
    return width * (width + 2 * SHAPE["kv_heads"] * SHAPE["head"]) + width * width + 3 * width * ffn


def show(out: dict[str, Any]) -> None:
    """Print one line a figure, then JSON."""
    for name, value in out.items():
        print(f"{name:<48} {value:>16,.2f}" if isinstance(value, float) else f"{name:<48} {value!s:>16}")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
