"""Train the set that ships on a borrowed GPU machine that has only Python, torch and numpy, in calls of some minutes.

    python tests/gpu/train_set.py gather DATA .carry [--megabytes 24] [--python 3.12]   # where there is a package index
    python tests/gpu/train_set.py train .carry OUT [--seconds 560] [--factor 4]         # on the GPU machine

`gather` brings the wheels that are needed there and an even share of the recipes' texts. `train` takes the recipes in
the order in which they stand on one another, each with `factor` times its tokens, and stops in time; the next call
goes on. Once all are done, OUT holds recipes and packs in archives of at most 15 MB, to be unpacked over the
repository. On a CPU (`--device cpu`) it does the same, slowly.
"""

from __future__ import annotations

import argparse
import lzma
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins_example"
NANO = PLUGINS / "modularbase-nano" / "recipes"
ARCHIVE_BYTES = 15_000_000
FIRST = 50
"""Records of a file that are taken whatever its share is."""
TO_STOP = 25
"""Seconds that are kept for a run to write its checkpoint."""
WHEELS = ("click", "editables", "hatchling", "importlib-metadata", "jinja2", "markdown-it-py", "packaging")
WHEELS += ("platformdirs", "pluggy", "tomlkit", "tqdm")
TOKENS = re.compile(r"^(tokens|recall_tokens|needle_tokens) = ([\d_]+)$", re.MULTILINE)


def main() -> int:
    """Gather or train; exit code 3 when another call must go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("gather")
    one.add_argument("data", type=Path)
    one.add_argument("carry", type=Path)
    one.add_argument("--megabytes", type=float, default=24)
    one.add_argument("--python", default="3.12")
    one.set_defaults(do=lambda o: gather(o.data, o.carry, o.megabytes, o.python))
    one = parts.add_parser("train")
    one.add_argument("carry", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--seconds", type=float, default=560)
    one.add_argument("--factor", type=float, default=4)
    one.add_argument("--device", default="cuda")
    one.set_defaults(do=lambda o: train(o.carry.resolve(), o.out.resolve(), o.seconds, o.factor, o.device))
    options = parser.parse_args()
    return options.do(options)


def stages() -> list[tuple[str, Path, list[str]]]:
    """Return (stage, recipe, flags) in the order in which they stand on one another."""
    begun = "nano-base-begun"  # its own name: what follows stands on the base that base_recall.toml ships
    first = [
        ("base", NANO / "base.toml", ["--name", begun]),
        ("base", NANO / "base_more.toml", ["--base", begun, "--start", begun]),
        ("base", NANO / "base_recall.toml", []),
        ("chat", NANO / "chat.toml", []),
        ("router", NANO / "router.toml", []),
    ]
    return first + [("pack", path, []) for path in sorted(PLUGINS.glob("modularbase-pack-*/recipes/*.toml"))]


def gather(data: Path, carry: Path, megabytes: float, python: str) -> int:
    """Fill `carry` with wheels for `python` and a share of the texts that fits `megabytes`."""
    wheels = carry / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "--only-binary", ":all:"]
    # the hub's client, which only tokenizers' own downloads need, would bring a dozen more
    subprocess.run([*fetch, "--no-deps", "--python-version", python, "tokenizers"], check=True)
    subprocess.run([*fetch, "--python-version", python, *WHEELS], check=True)
    names = {found for _, path, _ in stages() for found in re.findall(r'"([\w/.-]+\.jsonl\.xz)"', path.read_text())}
    sizes = {name: (data / name).stat().st_size for name in sorted(names)}
    share = min(1.0, megabytes * 1e6 / sum(sizes.values()))
    for name in sizes:
        target = carry / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        random_ = random.Random(name)
        with lzma.open(data / name, "rt", encoding="utf-8") as read, lzma.open(target, "wt", encoding="utf-8") as out:
            out.writelines(line for number, line in enumerate(read) if number < FIRST or random_.random() < share)
    print(f"{len(sizes)} files, {share:.0%} of the texts, {len(list(wheels.iterdir()))} wheels in {carry}")
    return 0


def train(carry: Path, out: Path, seconds: float, factor: float, device: str) -> int:
    """Take the stages as far as the time allows; returns 3 when there is more to do."""
    end = time.monotonic() + seconds
    kept = ROOT / ".carry-kept"  # on that machine: ignored folders outlast a call
    program = _environment(kept, carry)
    _scale(kept, factor)
    for stage, recipe, flags in stages():
        if (kept / recipe.stem).exists():
            continue
        ship = ["--ship"] if "\nship = " in recipe.read_text() else []
        command = [str(program), "train", stage, str(recipe), *ship, "--device", device, *flags]
        command += ["--data", str(carry / "data"), "--runs", str(kept / "runs"), "--threads", "0", "--logs", "none"]
        started = time.monotonic()
        if not _run_until(command, end - TO_STOP):
            print(f"{recipe.stem}: to be continued")
            return 3
        (kept / recipe.stem).touch()
        print(f"{recipe.stem}: {time.monotonic() - started:.0f} s", flush=True)
    _pack_up(out)
    return 0


def _environment(kept: Path, carry: Path) -> Path:
    """Install this repository and its plugins beside the machine's own torch; return the program."""
    python = kept / "venv/bin/python"
    if not (kept / "venv/ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(kept / "venv")], check=True)
        local = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(carry / "wheels")]
        subprocess.run([*local, "--no-deps", *map(str, sorted((carry / "wheels").iterdir()))], check=True)
        projects = [ROOT, *dict.fromkeys(path.parents[1] for _, path, _ in stages())]
        editable = [word for project in projects for word in ("-e", str(project))]
        subprocess.run([*local, "--no-deps", "--no-build-isolation", *editable], check=True)
        (kept / "venv/ready").touch()
    return kept / "venv/bin/modularbase"


def _scale(kept: Path, factor: float) -> None:
    """Give the recipes `factor` times their tokens, once; the router's are messages and stay."""
    if (kept / "scaled").exists():
        return
    for _, recipe, _ in stages():
        if recipe.stem == "router":
            continue
        head, *rest = recipe.read_text().split("[[examples]]", 1)
        head = TOKENS.sub(lambda found: f"{found[1]} = {int(int(found[2].replace('_', '')) * factor):_}", head)
        recipe.write_text("[[examples]]".join([head, *rest]))
    (kept / "scaled").touch()


def _run_until(command: list[str], end: float) -> bool:
    """Run a command, and interrupt it when the time is over; tells whether it finished."""
    with subprocess.Popen(command, cwd=ROOT) as child:
        try:
            code = child.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # the run writes its checkpoint
            child.wait()
            return False
    if code:
        raise SystemExit(code)
    return True


def _pack_up(out: Path) -> None:
    """Lay recipes and packs into archives that are small enough to travel."""
    files = sorted(path for path in PLUGINS.rglob("*") if path.suffix in (".toml", ".json", ".safetensors"))
    out.mkdir(parents=True, exist_ok=True)
    parts: list[list[Path]] = [[]]
    for path in files:
        if sum(one.stat().st_size for one in parts[-1]) + path.stat().st_size > ARCHIVE_BYTES:
            parts.append([])
        parts[-1].append(path)
    for number, part in enumerate(parts):
        with tarfile.open(out / f"set-{number}.tar", "w") as archive:
            for path in part:
                archive.add(path, path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
