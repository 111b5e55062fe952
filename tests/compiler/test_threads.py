"""Attention on the CPU gives the same bits on any number of threads: each count in a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tvm
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.target import host_target

from modularbase_core.device.target import cpu_target
from modularbase_core.graph.rotary import rotary_table
from tests.compiler.ragged import layout

LAYERS, PAGES, POSITIONS = 2, 160, 640  # three blocks of 256 keys
HEADS, KV_HEADS, SIZE = 14, 2, 64
# new rows and tokens before them: a prompt, one in several chunks beside others, decode of several and of a lone one
CALLS = {
    "prompt": ([300], [0]),
    "ragged": ([40, 1, 7], [530, 290, 16]),
    "decode": ([1, 1, 1], [600, 255, 0]),
    "lone": ([1], [638]),
}
PLACES = ("starts", "lengths", "context", "visible")

RUN = """
import hashlib, json, sys
import numpy as np
from modularbase_core.device.executable import Device
threads, library, values = int(sys.argv[1]), sys.argv[2], np.load(sys.argv[3])
device = Device(threads=threads)
import tvm
attend, digests = tvm.runtime.load_module(library), {}
for name in sys.argv[4:]:
    given = [values[key] for key in ("qkv", "pages", "table")]
    places = [values[f"{name} {key}"] for key in ("starts", "lengths", "context", "visible")]
    given[0] = given[0][: places[1].sum()]
    inputs = [device.put(np.ascontiguousarray(one)) for one in (*given, *places)]
    out = device.tensor((len(given[0]), int(values["width"])))
    attend["attend"](*(one.handle for one in inputs), 1, out.handle)
    assert np.isfinite(out.numpy()).all() and out.numpy().any()
    digests[name] = hashlib.sha256(out.numpy().tobytes()).hexdigest()
print(json.dumps([tvm.runtime.num_threads(), digests]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Compile the kernel and draw what it is called with, once for all processes."""
    folder = tmp_path_factory.mktemp("threads")
    kernel = CpuKernels(cpu_target().level).attend(LAYERS, HEADS, KV_HEADS, SIZE, POSITIONS)
    kernel = kernel.with_attr("global_symbol", "attend")
    tvm.compile(kernel, host_target(cpu_target())).export_library(str(folder / "attend.so"))
    generator, values = np.random.default_rng(0), {"width": np.int64(HEADS * SIZE)}
    values["qkv"] = generator.standard_normal((300, (HEADS + 2 * KV_HEADS) * SIZE), np.float32)
    values["pages"] = generator.standard_normal((PAGES, LAYERS, 2, KV_HEADS, 16 * SIZE), np.float32)
    values["table"] = rotary_table(POSITIONS, SIZE, 10000.0)
    for name, (lengths, contexts) in CALLS.items():
        call = layout(lengths, contexts, POSITIONS // 16, PAGES)
        values |= {f"{name} {place}": call[place] for place in PLACES}
    np.savez(folder / "values.npz", **values)
    return folder / "attend.so", folder / "values.npz"


def attended(threads, files, monkeypatch):
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)  # it would outweigh what the device asks for
    command = [sys.executable, "-c", RUN, str(threads), *map(str, files), *CALLS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="TVM runs no more threads than there are cores")
def test_attention_gives_the_same_bits_on_any_number_of_threads(files, monkeypatch):
    (one, alone), (two, together) = (attended(count, files, monkeypatch) for count in (1, 2))
    assert (one, two) == (1, 2)
    assert len(set(alone.values())) == len(CALLS)
    assert alone == together
