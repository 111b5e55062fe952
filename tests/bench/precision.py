"""What weights of fewer bits cost: perplexity of held-out records of each shipped pack, by precision, against float16.

In torch, with the arithmetic that the kernels repeat (`graph.quantised`): rounded weights, rows quantised as well where
weights are integers. Records are the same for all; what an assistant says counts.

    python tests/bench/precision.py DATA [--records 60]

A table of perplexities, one of what is above float16 in per cent, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from quality import HELD_OUT
from tokenizers import Tokenizer
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from eager import Eager

from modularbase_core.packs.catalog import discover
from modularbase_core.packs.resolve import line_up
from modularbase_core.train.corpus import read_records
from modularbase_core.train.encoding import Encoder

HELD_OUT = {"general_chat": ("chat/test", "chat/more_test"), **HELD_OUT}
PRECISIONS = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "int8"),
    ("float16", "int4"),
    ("int8", "int8"),
    ("int4", "int4"),
)
LONGEST = 512


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--records", type=int, default=60, help="of each pack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lineup = line_up(discover(), None)
    directories = {one.id: one.pack.directory for one in (lineup.base, *lineup.routable)}
    encoder = Encoder(Tokenizer.from_file(str(lineup.base.pack.tokenizer)), response_only=True)
    texts = {pack: _texts(options.data, files, encoder, options.records) for pack, files in HELD_OUT.items()}
    found: dict[str, dict[str, float]] = {}
    for base, packs in PRECISIONS:
        eager = Eager({name: directories[name] for name in (lineup.base.id, *HELD_OUT)}, lineup.base.id, base, packs)
        found[f"{base}, {packs}"] = {pack: _perplexity(eager, pack, texts[pack]) for pack in HELD_OUT}
    show(found)
    print(json.dumps(found))


def _texts(data: Path, files: Sequence[str], encoder: Encoder, count: int) -> list[tuple[list[int], list[bool]]]:
    records = [one for file in files for one in read_records(data / f"{file}.jsonl.xz")]
    chosen = [records[place] for place in np.random.default_rng(0).permutation(len(records))[:count]]
    encoded = [encoder.encode(one) for one in chosen]
    return [(list(ids[:LONGEST]), list(learn[:LONGEST])) for ids, learn in encoded]


def _perplexity(eager: Eager, pack: str, texts: Sequence[tuple[list[int], list[bool]]]) -> float:
    total, count = 0.0, 0
    for ids, learn in texts:
        rows = np.flatnonzero(learn[1:])
        if not len(rows):
            continue
        logits = torch.from_numpy(eager.logits(ids, pack))[rows]
        total += float(functional.cross_entropy(logits, torch.tensor(ids)[rows + 1], reduction="sum"))
        count += len(rows)
    return float(np.exp(total / count))


def show(found: dict[str, dict[str, float]]) -> None:
    """Print both tables."""
    print(f"{'base, packs':<20}" + "".join(f"{pack[:12]:>14}" for pack in HELD_OUT))
    for name, row in found.items():
        print(f"{name:<20}" + "".join(f"{value:>14.3f}" for value in row.values()))
    print("above float16, %")
    for name, row in found.items():
        against = found["float16, float16"]
        print(f"{name:<20}" + "".join(f"{100 * (row[pack] / against[pack] - 1):>14.3f}" for pack in row))


if __name__ == "__main__":
    main()
