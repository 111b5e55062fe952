"""What `modularbase train grow` decides from messages, and the recipe that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modularbase_core.cli.pack.init import choose_base, complete_answers, rendered
from modularbase_core.cli.pack.start import make_data, pack_folder
from modularbase_core.cli.pack.template import Template
from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import lay_out
from modularbase_core.errors import ConfigError, DataError
from modularbase_core.train.recipe import Source

if TYPE_CHECKING:
    import pluggy

    from modularbase_core.config import EngineConfig
    from modularbase_core.packs.catalog import Catalog
    from modularbase_core.train.decision import Decision

ROUTED_MESSAGES: Final = 600
"""More tell nothing new of where the rest goes."""
LEARNT_TIMES: Final = 3
"""How often a pack that grows goes through the new records."""
RECIPE_FILE: Final = "recipe.toml"


@dataclass(frozen=True, slots=True)
class New:
    """What to grow by. files: as they are read from anywhere; replay: of what the pack learnt before."""

    files: tuple[Path, ...]
    replay: tuple[Path, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files as shares of a mix, each a source of its own."""
        return tuple(Source(files=(str(file.resolve()),), tokens=1) for file in self.files)


def decide_by_messages(
    sources: Sequence[Source],
    data: Path,
    config: EngineConfig,
    catalog: Catalog,
    manager: pluggy.PluginManager | None,
    *,
    threshold: float,
    quiet: bool,
) -> Decision:
    """Route the records' messages as chat would, and decide which pack is to learn them. Raises DataError."""
    from modularbase_core.host.builtin import hooks_of
    from modularbase_core.host.keys import background_of
    from modularbase_core.host.messages import Messages
    from modularbase_core.train.asked import messages_asked
    from modularbase_core.train.decision import decide

    texts = messages_asked(sources, data, most=ROUTED_MESSAGES, seed=1)
    with progress_bar(quiet=quiet) as progress:
        messages = Messages.open(config, catalog, progress, hooks_of(catalog, manager) if manager else None)
    queries, scores = messages.queries_and_scores(texts)
    lineup = messages.lineup
    return decide(
        queries,
        scores,
        background_of(lineup),
        general=lineup.general_chat.id,
        reach=config.threshold,
        threshold=threshold,
    )


def told(decision: Decision) -> str:
    """Lay a decision out: how many messages reach each pack, what is decided, and why."""
    total = sum(decision.counts.values())
    rows = [(pack, str(count), f"{count / total:.0%}") for pack, count in decision.counts.items()]
    lines = lay_out([("pack", "messages", "share"), *rows]) if rows else []
    what = "a new pack learns them" if decision.pack is None else f"{decision.pack} learns them"
    return "\n".join([*lines, f"{what}: {decision.why}", *(f"note: {note}" for note in decision.notes)])


def described(decision: Decision) -> dict[str, Any]:  # Any: JSON
    """Return a decision as plain values."""
    return {
        "pack": decision.pack,
        "new": decision.pack is None,
        "why": decision.why,
        "messages": dict(decision.counts),
        "coherence": decision.coherence,
        "notes": list(decision.notes),
    }


def grown_recipe(
    new: New, pack: str, config: EngineConfig, catalog: Catalog, keys: Mapping[str, Any], runs: Path
) -> Path:
    """Write the recipe by which an installed pack grows into RUNS/NAME, and return it. keys: what flags gave."""
    from modularbase_core.packs.resolve import line_up

    one, lineup = catalog.find(pack), line_up(catalog, config.base)
    if one.id not in {other.id for other in lineup.routable}:
        raise DataError(f"{one.id} cannot grow: {lineup.refused.get(one.id, f'it is a {one.manifest.type} pack')}")
    name: str = keys.get("name", f"{one.id}-grown")
    own = {"base": lineup.base.id, "start": one.id, "ship": str(Path(runs, name, "pack").absolute())}
    path = runs / name / RECIPE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, {"name": name, **own, **_shares(new, lineup.base.pack.tokenizer, config, catalog), **keys})
    return path


def new_project(
    new: New,
    pack_id: str,
    domain: str | None,
    output: Path,
    config: EngineConfig,
    catalog: Catalog,
    keys: Mapping[str, Any],
    *,
    quiet: bool,
) -> Path:
    """Make the project of a new pack as `pack init` does, with the recipe by which it learns; return the recipe.

    A project that is there already is taken for one that was interrupted, if its recipe is `grow`'s.
    """
    template = Template.find()
    base = choose_base(catalog, config.base)
    if base is None:
        raise ConfigError("no base is installed for a new pack; install one, such as modularbase-nano")
    named = {"pack_id": pack_id, "domain": domain or pack_id.replace("_", " ").replace("-", " ")}
    answers = complete_answers(template, named, catalog, base, asks=False)
    target = output / str(answers["distribution"])
    path = target / "recipes" / f"{pack_id}.toml"
    own = {"base": base.id, "start": answers["_general_chat"], "ship": f"../{answers['module']}/{pack_id}"}
    shares = _shares(new, base.pack.tokenizer, config, catalog)
    recipe = {"name": pack_id, **own, **({} if new.replay else {"replay_share": 0.0}), **shares, **keys}
    if path.exists() and 'stage = "grow"' in path.read_text(encoding="utf-8"):
        _write(path, recipe)
        return path
    with rendered(template, answers, target) as project:
        make_data(pack_folder(project), config, catalog, quiet=quiet)
        _write(project / "recipes" / path.name, recipe)
    return path


def _shares(new: New, tokenizer: Path, config: EngineConfig, catalog: Catalog) -> dict[str, Any]:
    """Return the keys that follow from how much there is to learn."""
    from modularbase_core.train.grow import count_tokens

    counts = [count_tokens(source, tokenizer) for source in new.sources]
    window = _window(catalog, config)
    tokens = LEARNT_TIMES * sum(counts)
    batch = 4 * window if tokens >= 400 * window else window
    keys: dict[str, Any] = {
        "stage": "grow",
        "tokens": max(tokens, 16 * batch),
        "batch_tokens": batch,
        "windows": [[1.0, window // 2]],
        "response_only": True,
        "matrix_rate": 0.005,
        "other_rate": 0.001,
        "warmup_steps": 10,
        "decay_share": 0.7,
        "data": ".",
    }
    keys["mix"] = [
        {"files": list(source.files), "tokens": count} for source, count in zip(new.sources, counts, strict=True)
    ]
    if new.replay:
        keys["replay"] = [{"files": [str(file.resolve())], "tokens": 1} for file in new.replay]
    return keys


def _window(catalog: Catalog, config: EngineConfig) -> int:
    from modularbase_core.packs.resolve import choose_base as the_base
    from modularbase_core.sdk.architecture import BaseArchitecture

    network = the_base(catalog, config.base).manifest.network
    assert isinstance(network, BaseArchitecture)
    return network.window.trained_tokens


def _write(path: Path, recipe: Mapping[str, Any]) -> None:
    import tomlkit

    head = "# Written by `modularbase train grow`, which goes on from here if it is interrupted.\n"
    path.write_text(head + tomlkit.dumps(dict(recipe)), encoding="utf-8")
