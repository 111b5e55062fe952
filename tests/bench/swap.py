"""How long a swap takes: packs of a few MB (nano) and of 64 to 256 MB, against the time of copying their bytes.

Interleaved in one run: `slots.hold` of a pack that is not in place (page cache warm, repacked before), of one that was
prefetched, and a plain copy of as many bytes between touched buffers by one thread (the better of numpy and libc).
Two threads are shown beside: they gain nothing on one memory bus. With --peer-python, a child reloads a model of the
same bytes with llama.cpp. Also zstd (if `zstandard` is installed) for what is cached on the host: its ratio, and the
time of decompressing against that of copying. It was declined: 1.3 times smaller, more than 10 times slower.

    python tests/bench/swap.py [--folder FOLDER] [--swaps 100] [--peer-python PATH] [--layers 2 5]
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from many_packs import copy_of, large, nano_set, random_pack, with_packs

from modularbase_core.config import EngineConfig
from modularbase_core.device.layouts import planned_bytes
from modularbase_core.device.repacked import HEADER_BYTES, repacked_folder
from modularbase_core.host import Host, build
from modularbase_core.sdk.architecture import architecture_key
from modularbase_core.sdk.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest

PACKS = 3  # of a size: with one slot each hold of the next is a miss


def main() -> None:
    """Run all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "modularbase-swap"))
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 5], help="sizes of the large packs")
    parser.add_argument("--peer-python", help="python of an environment with llama-cpp-python and gguf")
    options = parser.parse_args()
    catalog = nano_set()
    chat = catalog.of_type("system")[0].pack
    rows = []
    for layers in (0, *options.layers):
        folders = [options.folder / f"layers-{layers}" / f"pack{number}" for number in range(PACKS)]
        for number, folder in enumerate(folders):
            if layers:
                random_pack(chat, folder, folder.name, large(chat.manifest.network, layers), number)  # type: ignore[arg-type]
            else:
                copy_of(chat, folder, folder.name, number)
        config = EngineConfig(
            cache_dir=options.folder / "cache", slots=1, memory_bytes=16 << 30, host_cache_bytes=4 << 30, prefetch=False
        )
        with build(config, catalog=with_packs(catalog, folders)) as host:
            rows.append(measure(host, [folder.name for folder in folders], options.swaps))
        rows[-1] |= zstd(options.folder / "cache", folders[0])
        if options.peer_python:
            rows[-1] |= peer(options.peer_python, options.folder, int(rows[-1]["bytes"]))
    show(rows)


def measure(host: Host, packs: list[str], swaps: int) -> dict[str, float]:
    """Time swaps, prefetched holds and plain copies in turn."""
    slots = host.engine.slots
    architecture = host.catalog.find(packs[0]).manifest.network
    size = planned_bytes(host._parts.executables[architecture_key(architecture)].meta)
    target = np.ones(size, np.uint8)
    # as many sources as packs, by turns: neither way finds what it reads in the processor's caches
    sources = itertools.cycle([np.ones(size, np.uint8) for _ in range(PACKS)])
    copies: dict[str, Callable[[np.ndarray], object]] = {
        "numpy": lambda source: np.copyto(target, source),
        "libc": lambda source: ctypes.memmove(target.ctypes.data, source.ctypes.data, size),
    }
    with ThreadPoolExecutor(2) as pool:
        half = size // 2
        parts = ((slice(None, half)), (slice(half, None)))
        copies["two threads"] = lambda source: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
        times: dict[str, list[float]] = {name: [] for name in ("swap", "prefetched", *copies)}
        order = itertools.cycle(packs)
        for number in range(swaps + PACKS):
            for name, copy in copies.items():
                source = next(sources)
                seconds = clock(lambda copy=copy, source=source: copy(source))  # type: ignore[misc]
                if number >= PACKS:
                    times[name].append(seconds)
            pack_id = next(order)
            assert pack_id not in slots.loaded()
            swap = clock(lambda pack_id=pack_id: held(host, pack_id))  # type: ignore[misc]
            pack_id = next(order)
            assert slots.prefetch(pack_id)
            fetched = clock(lambda pack_id=pack_id: held(host, pack_id))  # type: ignore[misc]
            if number >= PACKS:  # the first round repacks and maps
                times["swap"].append(swap)
                times["prefetched"].append(fetched)
    copy = min(statistics.median(times[name]) for name in ("numpy", "libc"))
    out: dict[str, float] = {"bytes": size, "copy_gb_s": size / copy / 1e9}
    out["copy_two_threads_gb_s"] = size / statistics.median(times["two threads"]) / 1e9
    out["copy_ms"] = 1e3 * copy
    for name in ("swap", "prefetched"):
        out[f"{name}_p50_ms"], out[f"{name}_p99_ms"] = (1e3 * np.percentile(times[name], q) for q in (50, 99))
    best = [min(pair) for pair in zip(times["numpy"], times["libc"], strict=True)]
    out["copy_p99_ms"] = 1e3 * float(np.percentile(best, 99))
    out["swap_to_copy_p50"] = out["swap_p50_ms"] / out["copy_ms"]
    out["swap_to_copy_p99"] = out["swap_p99_ms"] / out["copy_ms"]
    return out


def held(host: Host, pack_id: str) -> None:
    """Bring a pack in and let it go."""
    with host.engine.slots.hold([pack_id]):
        pass


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def zstd(cache_dir: Path, pack: Path) -> dict[str, float]:
    """Compress a repacked file: ratio, and how many times longer decompressing takes than copying, by level."""
    try:
        import zstandard
    except ImportError:
        return {}
    digest = Manifest.read(pack / MANIFEST_FILE).files[WEIGHTS_FILE]
    file = next(repacked_folder(cache_dir).glob(f"{digest}-*.weights"))
    data = file.read_bytes()[HEADER_BYTES:]
    target = np.ones(len(data), np.uint8)
    out: dict[str, float] = {}
    for level in (1, 3):
        packed = zstandard.ZstdCompressor(level).compress(data)
        reader = zstandard.ZstdDecompressor()
        slow = min(clock(lambda: reader.decompress(packed, len(data))) for _ in range(5))  # noqa: B023
        fast = min(clock(lambda: np.copyto(target, np.frombuffer(data, np.uint8))) for _ in range(5))
        out |= {f"zstd{level}_ratio": len(data) / len(packed), f"zstd{level}_to_copy": slow / fast}
    return out


def peer(python: str, folder: Path, size_bytes: int) -> dict[str, float]:
    """Reload a model of the same bytes with llama.cpp in a child."""
    script = Path(__file__).with_name("llama_reload.py")
    command = [python, str(script), str(folder / "peer.gguf"), str(size_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def show(rows: list[dict[str, float]]) -> None:
    """Print the table and the JSON line."""
    names = ("a pack of", "copy p50", "p99", "swap p50", "p99", "/copy p50", "p99", "prefetched p50", "p99")
    widths = (12, 12, 11, 12, 11, 10, 7, 15, 11)
    print("".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
    for row in rows:
        times = ("copy_ms", "copy_p99_ms", "swap_p50_ms", "swap_p99_ms")
        cells = [f"{row['bytes'] / 1e6:.1f} MB", *(f"{row[name]:.2f} ms" for name in times)]
        cells += [f"{row[name]:.2f}" for name in ("swap_to_copy_p50", "swap_to_copy_p99")]
        cells += [f"{row[name]:.3f} ms" for name in ("prefetched_p50_ms", "prefetched_p99_ms")]
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    for row in rows:
        told = [f"copying {row['copy_gb_s']:.1f} GB/s, by two threads {row['copy_two_threads_gb_s']:.1f}"]
        if "zstd1_ratio" in row:
            told += [
                f"zstd -{n}: {row[f'zstd{n}_ratio']:.2f}x smaller, {row[f'zstd{n}_to_copy']:.0f}x slower than copying"
                for n in (1, 3)
            ]
        if "llama_mmap_p50_ms" in row:
            told.append(
                f"llama.cpp {row['llama_bytes'] / 1e6:.1f} MB: {row['llama_mmap_p50_ms']:.1f} ms mapped, "
                f"{row['llama_read_p50_ms']:.1f} ms read, to first token {row['llama_token_p50_ms']:.1f} ms"
            )
        print(f"{row['bytes'] / 1e6:>9.1f} MB: {'; '.join(told)}")
    print(json.dumps({"packs": rows}))


if __name__ == "__main__":
    main()
