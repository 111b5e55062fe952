"""Long contexts beside peers with the same layers: memory, speed, and what is still known of what was told.

Ours (base and general chat, hot window and cold store) against llama.cpp with the whole text in its cache (F16 and
Q8_0) and with a cache of 1,024 that shifts (16 sinks and half of the rest stay), and against transformers with 16 sinks
and a window of 1,024 (StreamingLLM, Xiao et al., 2023; keys are turned to their place in the cache). Each engine is a
process of its own. At each length of books from DATA/long, interleaved: seconds to read the text, tokens/s of decoding
64 tokens after it, peak RssAnon (of the process, Python and libraries included). Then passkeys (Mohtashami and Jaggi,
2023), told at 10, 50 and 90 % and asked for after the text was read, as a message of its own; at 900 tokens all see
all, which shows that the weights are the same.

What to know of the peers: they take 1 or 2 threads, as is faster on a short text before, ours takes 2 (--threads: with
other work on the machine two threads wait for each other, and 1 for all is the fairer). A whole cache beyond 1,024
positions is more than the base was trained on; it is run without and with llama.cpp's flash attention, which takes less
memory. Weights are float32 for ours and transformers, Q8_0 for llama.cpp: the int8 numbers that ship. The adapters of a
pack are no layers of a Llama: for speed and memory llama.cpp runs without them, which spares it two matrices; for
answers they are layers without a cache in a stream 32 wider. Ours tokenises within the time to read; peers get ids. A
peer that would read for longer than --most-seconds is cut: its memory is then that of its empty cache, which llama.cpp
fills at the start. A file that is mapped is not RssAnon: our cold store, and llama.cpp's weights (5 MB).

    python tests/bench/long_peers.py DATA --llama-python PYTHON [--lengths 2048 16384 65536 102400] [--keys 2]
        [--rounds 5] [--most-seconds 60] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modularbase_core.device.weights import read_weights
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.text.template import END
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.train.corpus import read_records

TELL, ASK = "The pass key is {key}. Remember it. {key} is the pass key.", "What is the pass key?"
DEPTHS = (0.1, 0.5, 0.9)
ALL_SEEN = 900
"""Tokens of a text that every engine sees whole."""
DECODED = 64
PIECE = 32768
"""Characters that are tokenised at once."""
CHARACTERS = 8
"""Of a book, taken for each token that is wanted: more than a token has."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A row of the table. whole: its cache holds the text. cache, flash: see peer_worker.py. asked: for passkeys."""

    name: str
    kind: str
    whole: bool = False
    cache: str = ""
    flash: bool = False
    asked: bool = True


ENGINES = (
    Engine("ours", "ours"),
    Engine("llama.cpp, all, F16", "llama", True, "f16"),
    Engine("the same, flash", "llama", True, "f16", True, asked=False),
    Engine("llama.cpp, all, Q8_0", "llama", True, "q8_0", True),
    Engine("llama.cpp, shift", "llama", cache="f16"),
    Engine("transformers, sinks", "sinks"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be read. ids: with the template around it; asked: the ids of the question and its template."""

    pieces: list[str]
    ids: list[int]
    asked: list[int]


class Process:
    """A worker (see peer_worker.py) and the most anonymous memory that it was seen to hold."""

    def __init__(self, python: str, described: dict[str, Any]) -> None:
        command = [python, str(Path(__file__).with_name("peer_worker.py")), json.dumps(described)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, for `close` closes it
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.peak_bytes = 0
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self.start_bytes = self._anonymous()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, name: str, **values: object) -> dict[str, Any]:
        """Give an order and wait for what came of it."""
        assert self._running.stdin is not None
        self._running.stdin.write(json.dumps({"do": name, **values}) + "\n")
        self._running.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._running.stdin is not None
        with suppress(BrokenPipeError):
            self._running.stdin.close()
        self._running.wait()
        self._done.set()
        self._watching.join()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._running.stdout is not None
        for line in self._running.stdout:
            if line.startswith("{"):  # libraries may print too
                return dict(json.loads(line))
        self._errors.seek(0)
        raise SystemExit(f"a worker ended: {self._errors.read()[-2000:]}")

    def _anonymous(self) -> int:
        lines = Path(f"/proc/{self._running.pid}/status").read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            with suppress(OSError):
                self.peak_bytes = max(self.peak_bytes, self._anonymous())


class Bench:
    """The weights and texts of a run, and how its processes are started."""

    def __init__(self, data: Path, llama_python: str | None, folder: Path, threads: Sequence[int]) -> None:
        self._llama_python, self._folder, self.threads = llama_python, folder, threads
        base, chat = (discover().find(name).pack for name in ("nano-base", "general_chat"))
        shape, pack = base.manifest.network, chat.manifest.network
        assert isinstance(shape, BaseArchitecture)
        assert isinstance(pack, PackArchitecture)
        assert shape.blocks == pack.blocks
        assert shape.tied_embedding
        self.tokenizer = Tokenizer.load(base.tokenizer)
        weights = read_weights(base.weights, shape) | read_weights(chat.weights, pack)
        self._weights = folder / "weights.npz"
        np.savez(self._weights, **weights)  # type: ignore[arg-type]
        blocks = shape.blocks
        self._shape = {
            "layers": [shape.understanding_layers, pack.layers, shape.fusion_layers],
            "vocabulary": shape.vocabulary_size,
            "width": blocks.hidden_size,
            "ffn": blocks.ffn_size,
            "heads": blocks.heads,
            "kv_heads": blocks.kv_heads,
            "head": blocks.head_size,
            "epsilon": blocks.norm_epsilon,
            "theta": blocks.rope_theta,
            "end": self.tokenizer.control(END),
        }
        books = read_records(data / "long/books.jsonl.xz")
        self._books = [record.text for record in books if record.text and record.language == "en"]

    @property
    def engines(self) -> list[Engine]:
        """What can be run."""
        return [one for one in ENGINES if self._llama_python or one.kind != "llama"]

    def start(self, engine: Engine, length: int, *, adapters: bool) -> Process:
        """Start an engine with room for a text of `length` tokens."""
        described: dict[str, Any] = {"kind": engine.kind}
        if engine.kind == "ours":
            return Process(sys.executable, described | {"threads": max(self.threads)})
        described |= {"weights": str(self._weights), "shape": self._shape}
        if engine.kind == "sinks":
            return Process(sys.executable, described)
        described["file"] = str(self._folder / ("adapters.gguf" if adapters else "layers.gguf"))
        # 1,024 more for the question and what is decoded
        described |= {"adapters": adapters, "cache": engine.cache, "flash": engine.flash, "shift": not engine.whole}
        described["context"] = -(-length // 256) * 256 + 1024 if engine.whole else 1024
        assert self._llama_python is not None
        return Process(self._llama_python, described)

    def text(self, length: int, depth: float, key: str, random_: random.Random) -> Text:
        """Cut a text of about `length` tokens out of a book, a key told where a sentence ends next after `depth`."""
        encode, controls = self.tokenizer.encode, self.tokenizer.controls
        told = TELL.format(key=key)
        book = random_.choice([book for book in self._books if len(book) > CHARACTERS * length])
        start = random_.randrange(len(book) - CHARACTERS * length)
        filler = book[start : start + CHARACTERS * length]
        filler = self.tokenizer.decode(encode(filler)[: length - len(encode(told))]).strip("\ufffd")
        end = re.compile(r"[.!?”]\s|\n").search(filler, int(len(filler) * depth))
        at = end.end() if end else int(len(filler) * depth)
        text = f"{filler[:at]} {told} {filler[at:]}"
        pieces = [text[first : first + PIECE] for first in range(0, len(text), PIECE)]
        opening, closing = controls.opening, controls.closing
        ids = [*controls.first, *(one for piece in pieces for one in encode(piece))]
        ids += [*closing["user"], *opening["assistant"], *encode("OK.")]
        asked = [*closing["assistant"], *opening["user"], *encode(ASK), *closing["user"], *opening["assistant"]]
        return Text(pieces, ids, asked)


def main() -> None:
    """Measure all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 16384, 65536, 102400], help="tokens")
    parser.add_argument("--keys", type=int, default=2, help="passkeys at each length and depth")
    parser.add_argument("--rounds", type=int, default=5, help="of decoding 64 tokens")
    parser.add_argument("--most-seconds", type=float, default=60, help="that a peer may take to read a text")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="that peers may take")
    options = parser.parse_args()
    if options.llama_python is None:
        print("llama.cpp is left out: give --llama-python, a Python that has llama-cpp-python and gguf.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data, options.llama_python, Path(folder), options.threads)
        head()
        controls = answers(bench, bench.engines, ALL_SEEN, options.keys, options.most_seconds)
        rows += [{"length": ALL_SEEN, "engine": name, "answers": right} for name, right in controls.items()]
        for row in rows:
            show(row)
        last: dict[str, dict[str, Any]] = {}
        for length in sorted(options.lengths):
            cut = {
                one.name
                for one in bench.engines
                if one.whole and _foreseen(last.get(one.name), length) > options.most_seconds
            }
            speeds = speed(bench, length, options.rounds, cut)
            asked = [one for one in bench.engines if one.name not in cut]
            right = answers(bench, asked, length, options.keys, options.most_seconds)
            for name, figures in speeds.items():
                rows.append({"length": length, "engine": name, **figures, "answers": right.get(name)})
                show(rows[-1])
                if name not in cut:
                    last[name] = rows[-1]
    print(json.dumps({"rows": rows}))


def _foreseen(last: dict[str, Any] | None, length: int) -> float:
    """Guess the seconds to read `length` tokens from a shorter text: attention grows with the square."""
    return last["read_s"] * (length / last["length"]) ** 2 if last else 0.0


def speed(bench: Bench, length: int, rounds: int, cut: set[str]) -> dict[str, dict[str, Any]]:
    """Have all read a text and decode after it, by turns; return figures by engine."""
    text = bench.text(length, 0.5, "71432", random.Random(length))
    out: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for engine in bench.engines:
            process = processes[engine.name] = stack.enter_context(bench.start(engine, length, adapters=False))
            out[engine.name] = {"start_mib": process.start_bytes / 2**20, "cut": engine.name in cut}
        reading = {name: process for name, process in processes.items() if name not in cut}
        short = {"text": [bench.tokenizer.decode(text.ids[:ALL_SEEN])], "ids": text.ids[:ALL_SEEN]}
        threads = {name: faster(process, short, bench.threads) for name, process in reading.items()}
        for name, process in reading.items():
            process.do("threads", count=threads[name]["read"])
            out[name]["read_s"] = process.do("read", text=text.pieces, ids=text.ids)["seconds"]
            process.do("threads", count=threads[name]["decode"])
        seconds: dict[str, list[float]] = {name: [] for name in reading}
        for _ in range(rounds):
            for name, process in reading.items():
                seconds[name].append(process.do("decode", count=DECODED)["seconds"])
        for name, process in processes.items():
            out[name]["peak_mib"] = process.peak_bytes / 2**20
            if name in reading:
                out[name]["threads"] = threads[name] if name != "ours" else None
                out[name]["decode_tokens_s"] = DECODED / statistics.median(seconds[name])
    return out


def faster(process: Process, short: dict[str, Any], threads: Sequence[int]) -> dict[str, int]:
    """Return with how many threads an engine reads and decodes faster, on a short text; that warms it up too."""
    best: dict[str, tuple[float, int]] = {}
    for _ in range(2):
        for count in threads:
            process.do("threads", count=count)
            seconds = {"read": process.do("read", **short)["seconds"]}
            seconds["decode"] = process.do("decode", count=16)["seconds"]
            for name, one in seconds.items():
                best[name] = min(best.get(name, (one, count)), (one, count))
    return {name: count for name, (_, count) in best.items()}


def answers(
    bench: Bench, engines: Sequence[Engine], length: int, keys: int, most_seconds: float
) -> dict[str, dict[str, list[int]]]:
    """Ask the engines for passkeys; return how many each gave rightly, of how many, by depth in per cent.

    An engine that has read for most_seconds is asked for no further key.
    """
    right = {engine.name: {f"{depth:.0%}": [0, 0] for depth in DEPTHS} for engine in engines if engine.asked}
    spent = dict.fromkeys(right, 0.0)
    with ExitStack() as stack:
        processes = {
            one.name: stack.enter_context(bench.start(one, length, adapters=True)) for one in engines if one.asked
        }
        for process in processes.values():
            process.do("threads", count=1)
        for number in range(keys):
            for depth in DEPTHS:
                random_ = random.Random(f"{length} {depth} {number}")
                key = str(random_.randrange(10000, 100000))
                text = bench.text(length, depth, key, random_)
                for name, process in processes.items():
                    if number and spent[name] > most_seconds:
                        continue
                    spent[name] += process.do("read", text=text.pieces, ids=text.ids)["seconds"]
                    said = bench.tokenizer.decode(process.do("ask", question=ASK, ids=text.asked)["result"])
                    found = re.search(r"\d+", said)
                    marks = right[name][f"{depth:.0%}"]
                    marks[:] = marks[0] + (found is not None and found[0] == key), marks[1] + 1
    return right


def head() -> None:
    """Print the table's head."""
    names = ("peak MiB", "start MiB", "read s", "decode tok/s", *(f"key at {depth:.0%}" for depth in DEPTHS))
    print(f"{'tokens':>7}  {'':<22}" + "".join(f"{name:>14}" for name in names), flush=True)


def show(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    forms = {"peak_mib": ".1f", "start_mib": ".1f", "read_s": ".2f", "decode_tokens_s": ".0f"}
    cells = [format(row[name], form) if row.get(name) is not None else "-" for name, form in forms.items()]
    right = row["answers"]
    marks = [right[f"{depth:.0%}"] for depth in DEPTHS] if right else [(0, 0)] * len(DEPTHS)
    cells += [f"{good} of {asked}" if asked else "-" for good, asked in marks]
    note = "  cut: reading would take too long" if row.get("cut") else ""
    print(f"{row['length']:>7}  {row['engine']:<22}" + "".join(f"{cell:>14}" for cell in cells) + note, flush=True)


if __name__ == "__main__":
    main()
