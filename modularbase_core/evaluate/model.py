"""The installed model in the forms that metrics need, each opened when it is first asked for.

Routes come from base and router alone, likelihoods from torch, answers from the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

import pluggy

from modularbase_core import host as hosts
from modularbase_core.config import EngineConfig
from modularbase_core.errors import ConfigError, nearest
from modularbase_core.evaluate.likelihood import open_scorer
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.resolve import Lineup
from modularbase_core.text.controls import template_beside
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.fusions import Shares

if TYPE_CHECKING:
    from modularbase_core.train.perplexity import Scorer

Progress = Callable[[str, int, int], None]


class Model:
    """What is installed, lined up as `lineup`; close it when done."""

    def __init__(
        self,
        config: EngineConfig,
        catalog: Catalog,
        lineup: Lineup,
        manager: pluggy.PluginManager | None,
        progress: Progress,
    ) -> None:
        self.config, self.catalog, self.lineup = config, catalog, lineup
        self._manager, self._progress = manager, progress
        self._host: hosts.Host | None = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._host is not None:
            self._host.close()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer, with its chat template."""
        path = self.lineup.base.pack.tokenizer
        return Tokenizer.load(path, template_beside(path))

    @cached_property
    def messages(self) -> Messages:
        """Base and router, compiled."""
        return Messages.open(self.config, self.catalog, self._progress, hooks_of(self.catalog, self._manager))

    @property
    def host(self) -> hosts.Host:
        """The whole model, compiled and loaded."""
        if self._host is None:
            self._host = hosts.build(self.config, progress=self._progress, catalog=self.catalog, manager=self._manager)
        return self._host

    def scorer(self, pack_ids: Sequence[str]) -> Scorer:
        """Load the base and these packs as torch networks, blended as the settings say."""
        offered = hooks_of(self.catalog, self._manager).fusions()
        name = self.config.fusion
        if name not in offered:
            raise ConfigError(
                f"fusion is {name!r}, which is not there{nearest(name, offered)}; use one of those installed"
            )
        shares = Shares(offered[name], self.config.contradiction)
        return open_scorer(self.lineup, pack_ids, self.tokenizer, shares)
