"""Divide the device's memory among a line-up: residents, slots, hot pages, workspace."""

from __future__ import annotations

from modularbase_core.config import EngineConfig
from modularbase_core.context.hot import HotPages, bytes_per_page
from modularbase_core.device.budget import BudgetPlan, mebibytes, plan
from modularbase_core.device.layouts import planned_bytes
from modularbase_core.device.metadata import ArtefactMeta, InputMeta
from modularbase_core.errors import BudgetError, ConfigError
from modularbase_core.packs.resolve import Lineup
from modularbase_core.sdk.architecture import PAGE_TOKENS, BaseArchitecture, architecture_key
from modularbase_core.turn.rows import ROW_BYTES

MAX_RUNNING = 8
"""Sequences decoded in one call; a pack has pages for as many."""


def divide(config: EngineConfig, lineup: Lineup, metas: dict[str, ArtefactMeta]) -> tuple[BudgetPlan, int, Lineup]:
    """Divide the memory; also return the pages of each pack, and the line-up without packs too big for a slot."""
    base_meta, window_pages = _base(config, lineup, metas)
    pack_pages = MAX_RUNNING * window_pages
    of_pack = {one.id: pack_bytes(metas[architecture_key(one.manifest.network)], pack_pages) for one in lineup.routable}
    router_meta = metas[architecture_key(lineup.router.manifest.network)]
    resident = {
        lineup.base.id: planned_bytes(base_meta),
        lineup.router.id: planned_bytes(router_meta),
        lineup.general_chat.id: of_pack[lineup.general_chat.id],
    }
    # one pack that is too big for this memory must not stop the others: the largest that fits sets the slot
    sizes = sorted({0, *(size for pack, size in of_pack.items() if pack not in resident)}, reverse=True)
    for slot_bytes in sizes:
        try:
            divided = plan(
                config.memory_bytes,
                resident=resident,
                slot_count=config.slots,
                slot_bytes=slot_bytes,
                page_bytes=HotPages.page_bytes(base_meta),
                minimum_pages=window_pages,
                maximum_pages=config.hot_tokens // PAGE_TOKENS,
                workspace_bytes=_workspace_bytes(config, metas),
            )
            break
        except BudgetError:
            if slot_bytes == 0:
                raise
    refused = {
        pack: f"pack {pack!r} needs {mebibytes(size)} but a slot holds {mebibytes(slot_bytes)}; raise memory_bytes"
        for pack, size in of_pack.items()
        if pack not in resident and size > slot_bytes
    }
    return divided, pack_pages, lineup.without(refused)


def divide_for_routing(config: EngineConfig, lineup: Lineup, metas: dict[str, ArtefactMeta]) -> BudgetPlan:
    """Divide the memory where base and router run alone; raises BudgetError and ConfigError as `divide` does."""
    base_meta, window_pages = _base(config, lineup, metas)
    return plan(
        config.memory_bytes,
        resident={
            one.id: planned_bytes(metas[architecture_key(one.manifest.network)]) for one in (lineup.base, lineup.router)
        },
        slot_count=0,
        slot_bytes=0,
        page_bytes=HotPages.page_bytes(base_meta),
        minimum_pages=window_pages,
        maximum_pages=config.hot_tokens // PAGE_TOKENS,
        workspace_bytes=_workspace_bytes(config, metas),
    )


def pack_bytes(meta: ArtefactMeta, page_count: int) -> int:
    """Return the bytes of a pack in its place: weights and `page_count` pages."""
    return planned_bytes(meta) + page_count * bytes_per_page(pages_of(meta))


def pages_of(meta: ArtefactMeta) -> InputMeta:
    """Return the input of a pack's program that holds its pages."""
    return next(item for item in meta.programs["run"].inputs if item.name == "pages")


def _workspace_bytes(config: EngineConfig, metas: dict[str, ArtefactMeta]) -> int:
    """Count what programs allocate; recorded calls have theirs apart, as large again."""
    times = 2 if config.device == "cuda" and config.cuda_graphs else 1
    return times * sum(meta.workspace_bytes for meta in metas.values()) + ROW_BYTES


def _base(config: EngineConfig, lineup: Lineup, metas: dict[str, ArtefactMeta]) -> tuple[ArtefactMeta, int]:
    """Return the base's metadata and the pages that one sequence of its trained window takes."""
    architecture = lineup.base.manifest.network
    assert isinstance(architecture, BaseArchitecture)
    pages = architecture.window.trained_tokens // PAGE_TOKENS + 1
    if config.hot_tokens < pages * PAGE_TOKENS:
        raise ConfigError(
            f"hot_tokens is {config.hot_tokens} but {lineup.base.id} needs {pages * PAGE_TOKENS}; raise it"
        )
    return metas[architecture_key(architecture)], pages
