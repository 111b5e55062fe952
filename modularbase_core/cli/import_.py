"""`modularbase import`: take a pretrained checkpoint apart into a base, a router and general chat."""

from __future__ import annotations

from pathlib import Path

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.config import FORMS


@click.command(name="import", short_help="Take a pretrained checkpoint apart into base, router and general chat.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--name", help="Id of the base, and part of the other names [default: after the checkpoint's folder].")
@click.option("--understanding-layers", metavar="N", default=4, show_default=True, help="First layers, of the base.")
@click.option("--fusion-layers", metavar="N", default=2, show_default=True, help="Last layers, of the base.")
@click.option("--dtype", type=click.Choice(FORMS), default="fp16", show_default=True, help="How weights are kept.")
@click.option(
    "--window", "window_tokens", metavar="N", type=int, help="Tokens in view [default: the checkpoint's, at most 4096]."
)
@click.option(
    "--template", type=click.Path(path_type=Path), help="A template.json, where the checkpoint's own cannot be used."
)
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
def import_checkpoint(
    checkpoint: Path,
    out: Path,
    name: str | None,
    understanding_layers: int,
    fusion_layers: int,
    dtype: str,
    window_tokens: int | None,
    template: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Take CHECKPOINT apart, a folder with a Qwen2 or Qwen2.5, and make a project of it for pip.

    The first layers understand, the last ones fuse, those in the middle are general chat; nothing is trained, and the
    logits are those of the checkpoint.
    """
    from modularbase_core.cli.train.training import torch_needed

    with torch_needed():
        from modularbase_core.train.pretrained.decompose import Wanted, decompose
        from modularbase_core.train.pretrained.project import name_of
    wanted = Wanted(
        name=name_of(checkpoint) if name is None else name,
        understanding_layers=understanding_layers,
        fusion_layers=fusion_layers,
        form=dtype,
        window_tokens=window_tokens,
        template=template,
    )
    with progress_bar(quiet=quiet or as_json) as progress:
        manifests = decompose(checkpoint, out, wanted, progress)
    if as_json:
        packs = {folder: {"id": one.id, "size_mb": one.size_mb} for folder, one in manifests.items()}
        print_json({"directory": str(out), "packs": packs})
        return
    for one in manifests.values():
        click.echo(f"{one.id}: {one.size_mb:g} MB, {one.description}")
    if quiet:
        return
    click.echo(f"Next: pip install -e {out}, then modularbase chat")
    click.echo(f'Where other bases are installed too, put base = "{wanted.name}" into the settings.')
