"""The heat maps of a run of long_recall.py: what share of questions is answered, by length and depth, a map a kind.

    python tests/bench/heat_map.py OUTPUT FILE.svg

OUTPUT is what long_recall.py printed, or its last line. Below each length stands how often the page that tells came
back, or was still in sight.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

Figures = Mapping[str, Mapping[str, float]]
"""As long_recall.py prints them: by "kind, length" the shares `right`, `found` and `depth 10%` and so on."""


def main() -> None:
    """Draw the maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.output.read_text(encoding="utf-8").strip().splitlines()[-1]), options.file)


def draw(found: Figures, file: Path) -> None:
    """Write the maps of a run's figures as SVG, side by side."""
    kinds: dict[str, dict[int, Mapping[str, float]]] = {}
    for key, shares in found.items():
        kind, _, length = key.rpartition(", ")
        kinds.setdefault(kind, {})[int(length)] = shares
    widths = [len(lengths) for lengths in kinds.values()]
    size = (1.6 + sum(1.1 * width + 0.9 for width in widths), 4)
    figure, panels = plt.subplots(1, len(kinds), figsize=size, width_ratios=widths, squeeze=False, layout="constrained")
    for axes, (kind, lengths) in zip(panels[0], kinds.items(), strict=True):
        image = _map(axes, kind, lengths)
    figure.colorbar(image, ax=panels[0], label="answered, %", shrink=0.8)
    figure.savefig(file)
    plt.close(figure)


def _map(axes: Any, kind: str, lengths: Mapping[int, Mapping[str, float]]) -> Any:
    """Draw one kind's map, a column a length, a row a depth; return its image. axes: matplotlib's."""
    depths = sorted(
        {name for shares in lengths.values() for name in shares if name.startswith("depth ")},
        key=lambda name: int(name.split()[1].rstrip("%")),
    )
    cells = [[100 * lengths[length].get(depth, float("nan")) for length in sorted(lengths)] for depth in depths]
    image = axes.imshow(cells, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            if value == value:  # a number
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k")
    names = [f"{length:,}\nfound {lengths[length]['found']:.0%}" for length in sorted(lengths)]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(depths)), [depth.removeprefix("depth ") for depth in depths], fontsize=8)
    axes.set(title=kind, xlabel="tokens of the text", ylabel="where it was told")
    return image


if __name__ == "__main__":
    main()
