"""Lay out the installed nano set as the recipe wants it: packs in nano/, weights to start from in runs/."""

import shutil
from pathlib import Path

import torch
from modularbase_core.packs.catalog import Catalog, discover
from modularbase_core.train.ship import load_shipped


def lay_out(catalog: Catalog, root: Path) -> None:
    """Copy base and router into `root`/nano and write base and general chat as finished runs into `root`/runs."""
    for pack_id, place in (("nano-base", "base"), ("nano-router", "router")):
        shutil.copytree(catalog.find(pack_id).pack.directory, root / "nano" / place, dirs_exist_ok=True)
    for pack_id, prefix in (("nano-base", "base."), ("general_chat", "pack.")):
        weights = load_shipped(catalog.find(pack_id).pack.directory).state_dict()
        run = root / "runs" / pack_id
        run.mkdir(parents=True, exist_ok=True)
        torch.save({"network": {prefix + name: value for name, value in weights.items()}}, run / "checkpoint.pt")


if __name__ == "__main__":
    lay_out(discover(), Path(__file__).parents[1])
