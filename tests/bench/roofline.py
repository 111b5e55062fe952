"""The roofline of a run of speed.py: what each engine computes for a byte, and how fast, under the machine's limits.

The slope is memory's read speed and the roof the rate of int8 products, both of that run; torch's bfloat16 has another
roof. Points count what cannot be avoided (see speed_figures.py), so one above the slope reads from a cache.

    python tests/bench/roofline.py OUTPUT FILE.svg

OUTPUT is what speed.py printed, or its last line.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from speed_figures import read_line

MARKERS = {"prefill": "s", "decode": "o", "batch": "^"}
LABELS = {"prefill": "prefill, by tokens", "decode": "decode, by context", "batch": "decode, by sequences"}


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    draw(read_line(options.output.read_text(encoding="utf-8")), options.file)


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Write the roofline of `found`, the figures of a run, as SVG."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    _limits(axes, found)
    engines = list(dict.fromkeys(point["engine"] for point in found["points"]))
    for number, engine in enumerate(engines):
        for kind, marker in MARKERS.items():
            points = [one for one in found["points"] if one["engine"] == engine and one["what"].startswith(kind)]
            across, up = ([one[axis] for one in points] for axis in ("flop_per_byte", "flop_per_second"))
            style = {"color": f"C{number}", "marker": marker, "markersize": 6, "linewidth": 0.8, "alpha": 0.85}
            axes.plot(across, up, **style, linestyle="-" if kind == "batch" else "none")
            for one in points:
                place = (one["flop_per_byte"], one["flop_per_second"])
                said = one["what"].split()[-1]
                axes.annotate(said, place, xytext=(4, -9), textcoords="offset points", fontsize=6, color=f"C{number}")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP/s")
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
    for number, engine in enumerate(engines):
        axes.plot([], [], color=f"C{number}", linewidth=4, label=engine)
    for kind, marker in MARKERS.items():
        axes.plot([], [], color="black", marker=marker, linestyle="none", label=LABELS[kind])
    axes.legend(fontsize=8, loc="lower right")
    threads = found["threads"]
    axes.set_title(f"Qwen2-0.5B's shape, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    figure.savefig(file)
    plt.close(figure)


def _limits(axes: Any, found: Mapping[str, Any]) -> None:
    """Draw the slope and the roof over all points. axes: matplotlib's, which has no types."""
    speed, rate = found["machine: read"], found["machine: multiply"]
    across = [point["flop_per_byte"] for point in found["points"]]
    least, ridge, most = min(across) / 2, rate / speed, max([*across, rate / speed]) * 2
    axes.plot([least, ridge], [least * speed, rate], color="black", linewidth=1.2)
    axes.plot([ridge, most], [rate, rate], color="black", linewidth=1.2)
    middle = (least * ridge) ** 0.5
    axes.annotate(f"memory {speed / 1e9:.1f} GB/s ", (middle, middle * speed), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"int8 products {rate / 1e9:,.0f} GFLOP/s", (ridge, rate * 1.06), fontsize=8)


if __name__ == "__main__":
    main()
