"""Where conversations lie on disk: those with a name for good, others while their process lives."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modularbase_core.config import EngineConfig
from modularbase_core.context.codec import PageShapes, encoded_bytes, transcode
from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import ConfigError, InputError, SessionError, SessionInUse, nearest
from modularbase_core.sdk.architecture import BaseArchitecture
from modularbase_core.text.roles import spoken
from modularbase_core.text.template import Message
from modularbase_core.text.tokenizer import Tokenizer

NAME: Final = re.compile(r"[^\W_][\w.\-]{0,63}")
"""A letter or digit, then letters, digits, _ . -; in any script."""
SPILL_DIR: Final = "conversations"
"""In the cache: what conversations without a name keep of themselves."""


class Conversations:
    """Opens the stores of one model's conversations. shapes: of its pages; openers: of each kind of store, by name."""

    def __init__(
        self, config: EngineConfig, shapes: PageShapes, openers: Mapping[str, Callable[..., ColdStore]]
    ) -> None:
        self._config, self._shapes = config, shapes
        if config.cold_store not in openers:
            raise ConfigError(
                f"cold_store is {config.cold_store!r}, which is not there{nearest(config.cold_store, openers)}; "
                f"use {' or '.join(openers)}"
            )
        self._opener = openers[config.cold_store]

    def path(self, name: str) -> Path:
        """Return the folder of a session; raises InputError for a name that cannot be one."""
        return session_path(self._config, name)

    def open(self, session: Path | None) -> ColdStore:
        """Open the store of a session or, for None, make one for this process; raises SessionError."""
        if session is None:
            return self._open(self._spill())
        return self._open(session)

    def _open(self, directory: Path) -> ColdStore:
        return self._opener(directory, limit_bytes=self._config.session_bytes, shrink=self._shrink)

    def _spill(self) -> Path:
        folder = self._config.cache_dir / SPILL_DIR
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            return Path(tempfile.mkdtemp(prefix="spill-", dir=folder))
        except OSError as error:
            raise SessionError(
                f"nothing can be kept in {folder} ({error.strerror}); name another cache_dir or free some space"
            ) from error

    def _shrink(self, form: str, payload: bytes) -> bytes | None:
        if form in ("exact", "summary"):
            return None
        assert len(payload) == encoded_bytes(self._shapes, form)
        return transcode(payload, self._shapes, form, "summary")


def session_path(config: EngineConfig, name: str) -> Path:
    """Return the folder of the session `name`; raises InputError for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"a session cannot be called {name!r}; use up to 64 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return config.sessions_dir / name


def messages_of(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """Return the messages that are in a conversation's tokens, but for what the system says by itself."""
    controls = tokenizer.controls
    messages = spoken(token_ids, controls)
    default = spoken([*controls.begin, *controls.system], controls)
    if messages and default and messages[0].token_ids == default[0].token_ids and messages[0].role == "system":
        messages = messages[1:]
    return [
        Message(one.role, tokenizer.decode(one.token_ids))
        for one in messages
        if one.token_ids or one.role == "assistant"
    ]


def sweep(folder: Path) -> None:
    """Delete what processes that were killed left behind; what is in use stays."""
    for directory in folder.glob("spill-*"):
        try:
            ColdStore.open(directory, limit_bytes=1 << 20, create=False).close()
        except SessionInUse:
            continue
        except SessionError:  # what is damaged is of no use to anybody
            pass
        shutil.rmtree(directory, ignore_errors=True)


def shapes_of(base: BaseArchitecture) -> PageShapes:
    """Return what a page of this base holds."""
    blocks = base.blocks
    return PageShapes(
        hidden_size=blocks.hidden_size,
        understanding_layers=base.understanding_layers,
        fusion_layers=base.fusion_layers,
        kv_heads=blocks.kv_heads,
        head_size=blocks.head_size,
    )
