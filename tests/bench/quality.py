"""What the shipped weights know, by numbers: perplexities and variety of answers, on held-out records.

- a response under its own prompt against under another's, English and Chinese apart;
- base + general chat against base + each pack, on the pack's own held-out records; the base's validation texts;
- greedy answers to held-out prompts: distinct-2 and the share of 4-grams that repeat (compiled engine).

Who answers what is measured by routing.py.

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
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.perplexity import perplexity, shuffled_prompts
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Token

LANGUAGES = {"en": ("en",), "zh": ("zh", "zh-Hant")}
ANSWERS = 60
CHATS = ("chat/test", "chat/more_test")
HELD_OUT = {
    "python_code": ("python/mbpp_test", "python/test"),
    "reasoning": ("reasoning/test", "reasoning/aqua_test"),
    "medical": ("medical/test", "medical/more_test"),
    "legal": ("legal/test", "legal/zh_test"),
    "creative_writing": ("creative/test",),
}


def main() -> None:
    """Measure all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--records", type=int, default=0, help="at most so many records a figure; 0 for all")
    options = parser.parse_args()
    figures = perplexities(options.data, options.records)
    with build(EngineConfig()) as host:
        figures |= variety(host, short_prompts(options.data))
    for name, value in figures.items():
        print(f"{name:<28}{value:>10.3f}")
    print(json.dumps(figures))


def perplexities(data: Path, count: int) -> dict[str, float]:
    """Return perplexities of answers, of the packs' own held-out records, and of base texts; of `count` records each.

    A count of 0 takes all.
    """
    catalog = discover()
    base, chat = (load_shipped(catalog.find(name).pack.directory) for name in ("nano-base", "general_chat"))
    assert isinstance(base, Base)
    assert isinstance(chat, Pack)
    tokenizer = Tokenizer.from_file(str(catalog.find("nano-base").pack.tokenizer))
    figures: dict[str, float] = {}
    held_out = some(data, *CHATS, count=count)
    for name, languages in LANGUAGES.items():
        records = [record for record in held_out if record.language in languages]
        own = figures[f"{name}_own_prompt"] = perplexity(base, chat, records, tokenizer)
        other = figures[f"{name}_shuffled_prompt"] = perplexity(base, chat, shuffled_prompts(records), tokenizer)
        figures[f"{name}_ratio"] = own / other
    for name, files in HELD_OUT.items():
        pack = load_shipped(catalog.find(name).pack.directory)
        assert isinstance(pack, Pack)
        records = some(data, *files, count=count)
        without = figures[f"{name}_with_general_chat"] = perplexity(base, chat, records, tokenizer)
        figures[f"{name}_with_pack"] = perplexity(base, pack, records, tokenizer)
        figures[f"{name}_ratio"] = figures[f"{name}_with_pack"] / without
    validation = sorted(path.name.removesuffix(".jsonl.xz") for path in (data / "base").glob("*_valid.jsonl.xz"))
    texts = some(data, *(f"base/{name}" for name in validation), count=count)
    figures["base_validation"] = perplexity(base, chat, texts, tokenizer)
    return figures


def some(data: Path, *names: str, count: int = 0) -> list[Record]:
    """Return records of some files in random order, at most `count` of them unless that is 0."""
    records = [record for name in names for record in read_records(data / f"{name}.jsonl.xz")]
    random.Random(0).shuffle(records)
    return records[: count or None]


def short_prompts(data: Path) -> list[Record]:
    """Return held-out records whose prompts are short, to be answered."""
    return [record for record in some(data, *CHATS) if len(record.messages[0]["content"]) < 400]


def variety(host: Host, records: Sequence[Record]) -> dict[str, float]:
    """Answer held-out prompts greedily and with sampling; distinct-2 (Li et al., 2016) and repeated 4-grams."""
    out = {}
    settings = {
        "greedy": SamplingConfig(temperature=0, max_tokens=64),
        "sampled": SamplingConfig(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=0, max_tokens=64),
    }
    for name, sampling in settings.items():
        said = [answer(host, record.messages[0]["content"], sampling) for record in records[:ANSWERS]]
        pairs = [pair for ids in said for pair in itertools.pairwise(ids)]
        fours = [list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False)) for ids in said]
        out[f"{name}_distinct_2"] = len(set(pairs)) / max(1, len(pairs))
        out[f"{name}_repeated_4"] = 1 - sum(len(set(f)) for f in fours) / max(1, sum(map(len, fours)))
    return out


def answer(host: Host, prompt: str, sampling: SamplingConfig) -> list[int]:
    """Return the token ids of an answer."""
    said: list[int] = []
    for event in host.chat([Message("user", prompt)], sampling):
        if isinstance(event, Token):
            said.append(event.token_id)
    return said


if __name__ == "__main__":
    main()
