"""Decode and prefill of a network of Qwen2-0.5B's shape, beside llama.cpp and torch, and beside the machine's limits.

Random weights; ours is an imported checkpoint that runs through the engine (understanding, general chat, fusion, head).
Every engine is a process of its own; they are timed in turn, round after round, memory's speed with them. Prefill and
decode by context, decode of several sequences, a step under two packs of one architecture, and a swap. torch also runs
as it is compiled, which ends before anything is timed. What the figures are: speed_figures.py; the plot: roofline.py.

    python tests/bench/speed.py FOLDER [--llama-python PYTHON] [--rounds 5] [--threads 0] [--level x86-64-v3]
        [--contexts 0 512 1024 2000] [--batches 1 2 4 8 16 32] [--plot FILE.svg]

FOLDER keeps what is made once: checkpoint, packs, GGUF files, compiled programs (3 GB). Tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from select import select
from typing import Any

import torch
from speed_figures import PAIRS, Samples, figures, show
from speed_shape import SHAPE, WARM, WINDOW

sys.path.insert(0, str(Path(__file__).parents[1]))
from qwen2_directory import write_checkpoint

from modularbase_core.device.target import physical_cores
from modularbase_core.sdk.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest, write_manifest
from modularbase_core.train.pretrained.decompose import Wanted, decompose

PROMPT, STEPS, TORCH_STEPS = 512, 32, 8
MORE = ("second", "third")
"""Packs with the weights of general chat."""
QUIET_SECONDS = 0.3  # between two engines: threads that wait for more work spin a while


def main() -> None:
    """Measure and print the tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of every engine; 0 is one per physical core")
    parser.add_argument("--level", default="", help="compile ours for a lesser processor, such as x86-64-v3")
    parser.add_argument("--precisions", nargs="+", default=list(PAIRS), choices=list(PAIRS), help="of ours")
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 512, 1024, 2000], help="512 is always there")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--no-torch", action="store_true", help="leave torch out, compiled too")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--compile-seconds", type=float, default=900.0, help="after these it is left out")
    parser.add_argument("--plot", type=Path, help="draw a roofline (needs matplotlib)")
    options = parser.parse_args()
    options.contexts = sorted({PROMPT, *options.contexts})
    if options.contexts[-1] + WARM + STEPS > WINDOW or max(options.batches, default=0) > 32:
        parser.error(f"contexts and {WARM + STEPS} steps end at {WINDOW} tokens, batches at 32")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; run `pip install 'modularbase[bench]'`")
    options.threads = options.threads or physical_cores()
    found = measure(begin(options), options)
    show(found)
    if options.plot:
        from roofline import draw

        draw(found, options.plot)
    print(json.dumps(found))


def begin(options: argparse.Namespace) -> dict[str, Engine]:
    """Start every engine, by name; a compiled one that does not get ready, or not in time, is left out."""
    threads = {"threads": options.threads}
    engines = {"machine": Engine({"kind": "machine", **threads})}
    packs = make_packs(options.folder)
    more = make_more(packs["general_chat"], options.folder / "more")
    where = {
        "cache": str(options.folder / "cache"),
        "packs": {name: str(path) for name, path in {**packs, **more}.items()},
    }
    for precision in options.precisions:
        ours = {"kind": "ours", "precision": precision, "level": options.level, "more": list(more), **where}
        engines[f"ours {precision}"] = Engine({**ours, **threads})
        if options.llama_python:
            form = PAIRS[precision]
            peer = {"kind": "llama", "file": str(options.folder / f"{form}.gguf"), "form": form, **threads}
            engines[f"llama.cpp {form}"] = Engine(peer, python=options.llama_python)
    if not options.no_torch:
        engines["torch bf16"] = Engine({"kind": "torch", **threads})
    if not options.no_torch and not options.no_compile:
        peer = {"kind": "compiled", "prompt": PROMPT, "steps": TORCH_STEPS, **threads}
        try:
            engines["torch bf16, compiled"] = Engine(peer, limit_seconds=options.compile_seconds)
        except (TimeoutError, SystemExit) as error:  # it needs a C++ compiler, which may be missing
            print(f"torch.compile is left out: {error}", file=sys.stderr)
    return engines


def make_packs(folder: Path) -> dict[str, Path]:
    """Make a checkpoint with random weights and take it apart, once; directories by their names."""
    project, checkpoint = folder / "project", folder / "checkpoint"
    if not project.exists():
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
        sizes = dict(zip(names, (SHAPE[key] for key in ("width", "layers", "ffn", "vocabulary")), strict=True))
        heads = {"num_attention_heads": SHAPE["heads"], "num_key_value_heads": SHAPE["kv_heads"]}
        write_checkpoint(checkpoint, dtype=torch.bfloat16, max_position_embeddings=WINDOW, **sizes, **heads)
        decompose(checkpoint, project, Wanted(name="speed", form="int8", window_tokens=WINDOW), lambda *_: None)
        (checkpoint / "model.safetensors").unlink()
    return {path.parent.name: path.parent for path in project.rglob(MANIFEST_FILE)}


def make_more(pack: Path, folder: Path) -> dict[str, Path]:
    """Give the weights of a pack other ids, once; directories by id. Each has a place of its own once it is loaded."""
    for name in MORE:
        directory = folder / name
        if not (directory / MANIFEST_FILE).exists():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / WEIGHTS_FILE).unlink(missing_ok=True)
            (directory / WEIGHTS_FILE).hardlink_to(pack / WEIGHTS_FILE)
            described = Manifest.read(pack / MANIFEST_FILE)
            write_manifest(directory, replace(described, id=name, name=name, type="domain"))
    return {name: folder / name for name in MORE}


class Engine:
    """A worker process. Raises TimeoutError, and ends it, where it is not ready after `limit_seconds`."""

    def __init__(
        self, described: dict[str, Any], *, python: str = sys.executable, limit_seconds: float | None = None
    ) -> None:
        self.kind = str(described["kind"])
        command = [python, str(Path(__file__).with_name("speed_worker.py")), json.dumps(described)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=limit_seconds is not None,  # torch compiles in children, who end with it
        )
        if limit_seconds is not None and not select([self._process.stdout], [], [], limit_seconds)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise TimeoutError(f"not ready after {limit_seconds:.0f} s")
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


def measure(engines: dict[str, Engine], options: argparse.Namespace) -> dict[str, Any]:
    """Time all in turn, the first round to warm up; what came of it."""
    machine = engines.pop("machine")
    samples: Samples = {}
    for number in range(options.rounds + 1):
        found = {("machine", what): machine.ask(what) for what in ("read", "multiply")}
        for name, engine in engines.items():
            found |= {(name, what): value for what, value in one_round(engine, options).items()}
        for key, value in found.items():
            samples.setdefault(key, []).extend([value] if number else [])
    weights = {name: int(engine.ask("read")) for name, engine in engines.items()}
    for one in (machine, *engines.values()):
        one.close()
    return {"threads": options.threads, "level": options.level, **figures(samples, weights, STEPS)}


def one_round(engine: Engine, options: argparse.Namespace) -> dict[str, float]:
    """Time one engine once: tokens a second, and what a second pack and a swap take in seconds."""
    torch_s = engine.kind in ("torch", "compiled")
    steps = TORCH_STEPS if torch_s else STEPS
    found: dict[str, float] = {}
    for context in [PROMPT] if torch_s else options.contexts:
        seconds = engine.ask("prefill", tokens=max(1, context))
        if context:
            found[f"prefill {context}"] = context / seconds
        found[f"decode after {context}"] = steps / engine.ask("decode", steps=steps)
    for size in options.batches if engine.kind != "compiled" else []:
        found[f"batch {size}"] = size * steps / engine.ask("batch", sequences=size, steps=steps)
    if engine.kind == "ours":
        several, swap = engine.ask("several", steps=steps), engine.ask("swap")
        found["second pack's step"] = (several["two"] - several["one"]) / steps
        found["second pack's bytes"] = several["bytes"]
        found |= {"swap": swap["swap"], "swap's copy": swap["copy"], "swap's bytes": swap["bytes"]}
    return found


if __name__ == "__main__":
    main()
