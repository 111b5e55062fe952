"""A turn gives the same logits, to the bit, on any number of threads: each count in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modularbase_core.host import Parts

# a prompt over several blocks, steps, and a prompt again, under one pack and under two
RUN = """
import hashlib, json, sys
from pathlib import Path
threads, cache, base, packs, tests = int(sys.argv[1]), *sys.argv[2:]
sys.path.insert(0, tests)
from feeding import fed, new_sequence, random_tokens, shared
from tiny_packs import catalog_of
from modularbase_core.config import EngineConfig
from modularbase_core.host import Parts
settings = {"cache_dir": Path(cache), "threads": threads, "base_precision": base, "pack_precision": packs}
settings["contradiction"] = -1.0  # random packs contradict each other, and both shall have a say
directories = {Path(name).name: Path(name) for name in json.load(sys.stdin)}
parts = Parts(EngineConfig(hot_tokens=4096, **settings), catalog_of(directories), None)
engine, digests = parts.engine(), []
for route in ("python_code", shared(python_code=0.6, general_chat=0.4)):
    for pieces in ([90, 1, 1, 1, 20], [1] * 10):
        logits = fed(engine, new_sequence(parts), random_tokens(sum(pieces)), route, pieces)
        digests.append(hashlib.sha256(logits.tobytes()).hexdigest())
import tvm
print(json.dumps([tvm.runtime.num_threads(), digests]))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="TVM runs no more threads than there are cores")
@pytest.mark.parametrize("precisions", [("float32", "float32"), ("float16", "int8")], ids="-".join)
def test_a_turn_gives_the_same_bits_on_any_number_of_threads(
    parts_of: Callable[..., Parts],
    tiny_packs: dict[str, Path],
    precisions: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, pack = precisions
    parts = parts_of(tiny_packs, base_precision=base, pack_precision=pack)  # compiles, if no other test did
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)  # it would outweigh the settings
    found = {}
    for threads in (1, 2):
        given = [str(threads), str(parts.config.cache_dir), base, pack, str(Path(__file__).parents[1])]
        names = json.dumps([str(path) for path in tiny_packs.values()])
        command = [sys.executable, "-c", RUN, *given]
        done = subprocess.run(command, check=True, capture_output=True, text=True, input=names)
        taken, found[threads] = json.loads(done.stdout)
        assert taken == threads
    assert len(set(found[1])) == len(found[1])
    assert found[1] == found[2]
