"""What the shipped weights know, by numbers: perplexities and variety of answers, on held-out records.

- a response under its own prompt against under another's, English and Chinese apart;
- base + general chat against base + the Python pack, on Python; the base's validation texts beside it;
- greedy answers to held-out prompts: distinct-2 and the share of 4-grams that repeat (compiled engine);
- routing: how often the Python pack is chosen for Python messages, and for others.

    python tests/bench/quality.py DATA [--records 0]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from modularbase_core.config import EngineConfig
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.host import Host, build
from modularbase_core.packs.catalog import discover
from modularbase_core.text.template import Message
from modularbase_core.train.corpus import Record, read_json_lines, read_records
from modularbase_core.train.perplexity import perplexity, shuffled_prompts
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed, Token

LANGUAGES = {"en": ("en",), "zh": ("zh", "zh-Hant")}
ANSWERS = 60


def main() -> None:
    """Measure all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--records", type=int, default=0, help="at most so many records a figure; 0 for all")
    options = parser.parse_args()
    data: Path = options.data
    catalog = discover()
    packs = {name: catalog.find(name).pack for name in ("nano-base", "general_chat", "python_code")}
    base, chat, python = (load_shipped(pack.directory) for pack in packs.values())
    assert isinstance(base, Base)
    assert isinstance(chat, Pack)
    assert isinstance(python, Pack)
    tokenizer = Tokenizer.from_file(str(packs["nano-base"].tokenizer))

    def some(*names: str) -> list[Record]:
        records = [record for name in names for record in read_records(data / f"{name}.jsonl.xz")]
        random.Random(0).shuffle(records)
        return records[: options.records or None]

    figures: dict[str, float] = {}
    held_out = some("chat/test", "chat/more_test")
    for name, languages in LANGUAGES.items():
        records = [record for record in held_out if record.language in languages]
        own = figures[f"{name}_own_prompt"] = perplexity(base, chat, records, tokenizer)
        other = figures[f"{name}_shuffled_prompt"] = perplexity(base, chat, shuffled_prompts(records), tokenizer)
        figures[f"{name}_ratio"] = own / other
    code = some("python/mbpp_test", "python/test")
    figures["python_with_general_chat"] = perplexity(base, chat, code, tokenizer)
    figures["python_with_pack"] = perplexity(base, python, code, tokenizer)
    figures["python_ratio"] = figures["python_with_pack"] / figures["python_with_general_chat"]
    validation = sorted(path.name.removesuffix(".jsonl.xz") for path in (data / "base").glob("*_valid.jsonl.xz"))
    figures["base_validation"] = perplexity(base, chat, some(*(f"base/{name}" for name in validation)), tokenizer)
    with build(EngineConfig()) as host:
        figures |= variety(host, [record for record in held_out if len(record.messages[0]["content"]) < 400])
        figures |= routing(host, data, options.records)
    for name, value in figures.items():
        print(f"{name:<28}{value:>10.3f}")
    print(json.dumps(figures))


def variety(host: Host, records: Sequence[Record]) -> dict[str, float]:
    """Answer held-out prompts greedily and with sampling; distinct-2 (Li et al., 2016) and repeated 4-grams."""
    out = {}
    settings = {
        "greedy": SamplingConfig(temperature=0, max_tokens=64),
        "sampled": SamplingConfig(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=0, max_tokens=64),
    }
    for name, sampling in settings.items():
        said = [answer(host, record.messages[0]["content"], sampling)[1] for record in records[:ANSWERS]]
        pairs = [pair for ids in said for pair in itertools.pairwise(ids)]
        fours = [list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False)) for ids in said]
        out[f"{name}_distinct_2"] = len(set(pairs)) / max(1, len(pairs))
        out[f"{name}_repeated_4"] = 1 - sum(len(set(f)) for f in fours) / max(1, sum(map(len, fours)))
    return out


def routing(host: Host, data: Path, records: int) -> dict[str, float]:
    """Count how often the Python pack is chosen, for messages of its domain and of others."""
    rows = list(read_json_lines(data / "router/domains_test.jsonl.xz"))
    random.Random(0).shuffle(rows)
    chosen: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows[: records or None]:
        packs, _ = answer(host, row["text"], SamplingConfig(temperature=0, max_tokens=1))
        chosen[row["domain"] == "python"].append("python_code" in packs)
    return {
        "python_routed_share": sum(chosen[True]) / max(1, len(chosen[True])),
        "others_routed_to_python": sum(chosen[False]) / max(1, len(chosen[False])),
    }


def answer(host: Host, prompt: str, sampling: SamplingConfig) -> tuple[list[str], list[int]]:
    """Return the packs that answered and the token ids they said."""
    packs: list[str] = []
    said: list[int] = []
    for event in host.chat([Message("user", prompt)], sampling):
        if isinstance(event, Routed):
            packs = [pack.id for pack in event.packs]
        elif isinstance(event, Token):
            said.append(event.token_id)
        else:
            assert isinstance(event, Finished)
    return packs, said


if __name__ == "__main__":
    main()
