"""Messages written as phrases with slots: `my {body_en} hurts` stands for as many messages as there are body parts.

A file is TOML: `domain`, `[slots]` with lists of words, and `[[requests]]` with intent, lang and texts.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILLINGS: Final = 24
"""Messages made of a phrase with slots."""
SPELLINGS: Final = 3
"""Messages made of a phrase without slots, which differ in case and punctuation."""
_FULL_WIDTH: Final = str.maketrans("，。？！：；（）", ",.?!:;()")
_SLOT: Final = re.compile(r"\{(\w+)\}")


def read_phrases(path: Path, *, seed: int) -> list[dict[str, str]]:
    """Read a file of phrases and fill its slots; return messages with text, domain, intent and lang.

    Raises DataError when the file is not as it should be, naming the phrase.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    try:
        domain, slots = _of(value["domain"], str), value.get("slots")
        for words in _of(slots or {}, dict).values():
            _of(words, list)
        requests = list(_requests(value))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a file of phrases ({error}); give domain, [slots] and [[requests]]") from error
    out, random_ = [], random.Random(seed)
    for intent, language, text in requests:
        filled = _fillings(text, slots, random_, path)
        for one in dict.fromkeys(_as_typed(one, random_) for one in filled):
            out.append({"text": one, "domain": domain, "intent": intent, "lang": language})
    return out


def _as_typed(text: str, random_: random.Random) -> str:
    """Write a text as one of many people would: how punctuation and case are typed tells nothing of the domain."""
    if random_.random() < 0.5:
        text = text.translate(_FULL_WIDTH)
    if random_.random() < 0.3:
        text = text.rstrip(".?!。？！ ") or text
    return text.lower() if random_.random() < 0.3 else text


# Any: what TOML gives
def _requests(value: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for request in value["requests"]:
        for text in _of(request["texts"], list):
            yield request["intent"], request["lang"], text.strip()


# Any: what TOML gives
def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _fillings(text: str, slots: Mapping[str, list[str]] | None, random_: random.Random, path: Path) -> list[str]:
    if slots is None:  # such a file may hold braces
        return [text] * SPELLINGS
    names = _SLOT.findall(text)
    for name in names:
        if not slots.get(name):
            raise DataError(f"{path}: {text!r} names the slot {name!r}, which has no words; add them under [slots]")
    if not names:
        return [text] * SPELLINGS
    if text == f"{{{names[0]}}}":  # a list of words: each once
        return [str(word) for word in slots[names[0]]]
    return [_SLOT.sub(lambda found: str(random_.choice(slots[found[1]])), text) for _ in range(FILLINGS)]
