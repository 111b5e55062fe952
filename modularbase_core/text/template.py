"""The chat template: how messages become token ids.

Control tokens are inserted by id, never parsed out of text, so what a user types cannot forge a turn.
"""

from __future__ import annotations

from typing import Final

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CONTROL_TOKENS: Final = (BEGIN, END, *ROLES.values())
