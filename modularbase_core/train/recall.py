"""Synthetic recall documents: text that repeats itself after a while, and things told early and asked for late.

A small model learns to copy from its context (induction heads, Olsson et al., 2022) far sooner with a few
per cent of these in the mix than from prose alone, and reading a prompt is mostly copying.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from modularbase_core.errors import DataError
from modularbase_core.train.corpus import Record
from modularbase_core.train.encoding import Document, Documents, Encoder

NEEDLES: Final = {
    "en": (
        ("The {name} is {value}.", "What is the {name}?", "{value}"),
        ("Note: {name} = {value}.", "{name} =", "{value}"),
        ("Remember that the {name} is {value}.", "Tell me the {name}.", "The {name} is {value}."),
        ("Our {name} has been changed to {value}.", "Which is our {name}?", "{value}"),
        ("{name}: {value}", "{name}?", "{value}"),
        ("The code for {name} is {value}; keep it in mind.", "Give the code for {name}.", "{value}"),
        ("They call {value} the {name}.", "What do they call the {name}?", "{value}"),
        ("My {name} is {value}, by the way.", "Do you recall my {name}?", "Your {name} is {value}."),
    ),
    "zh": (
        ("{name}是{value}。", "{name}是什么？", "{value}"),
        ("请记住，{name}是{value}。", "请告诉我{name}。", "{name}是{value}。"),
        ("{name}：{value}", "{name}：", "{value}"),
        ("我的{name}是{value}。", "我的{name}是多少？", "你的{name}是{value}。"),
        ("注意，{name}已改为{value}。", "现在的{name}是什么？", "{value}"),
    ),
}
"""How a thing is told, asked for and answered. Names are words of the texts around, so that any name will do."""
SHORTEST, LONGEST = 48, 940
"""Tokens of filler around needles: up to nearly a window of 1,024, the question and answer beside."""
MOST_NEEDLES = 6
LONGEST_SNIPPET = 199
"""Tokens, of what a recall document repeats or puts between."""


def recall_documents(
    documents: Documents, wanted: int, begin: int, end: int, *, control: int, seed: int
) -> Iterator[Document]:
    """Yield documents of `wanted` tokens in all, made of snippets of `documents`.

    Half repeat a snippet after another one (A B A); half list snippets and then repeat them in another order.
    The loss counts on the repeated parts alone. Ids under `control` are control tokens and are left out. Raises
    DataError when there is too little text to cut snippets from.
    """
    random_ = np.random.default_rng(seed)
    plain = documents.ids[documents.ids >= control]
    if len(plain) <= LONGEST_SNIPPET:
        raise DataError(
            f"recall_tokens cuts snippets from the mix, but it has {len(plain)} tokens of text; "
            f"give more than {LONGEST_SNIPPET}, or set recall_tokens = 0"
        )
    made = 0
    while made < wanted:
        if random_.random() < 0.5:
            size, gap = int(random_.integers(12, 97)), int(random_.integers(0, LONGEST_SNIPPET + 1))
            parts = [_snippet(plain, size, random_), _snippet(plain, gap, random_)]
            if random_.random() < 0.5:
                random_.shuffle(parts[0])  # no grammar to lean on: only the copy helps
            again = [parts[0]]
        else:
            parts = [_snippet(plain, int(random_.integers(6, 25)), random_) for _ in range(int(random_.integers(3, 8)))]
            again = [parts[i] for i in random_.permutation(len(parts))]
        shown, repeated = np.concatenate(parts).tolist(), np.concatenate(again).tolist()
        ids = [begin, *shown, *repeated, end]
        made += len(ids)
        yield ids, [False] * (len(shown) + 1) + [True] * len(repeated) + [False]


def needle_documents(
    texts: Sequence[tuple[str, str]], wanted: int, encoder: Encoder, *, seed: int
) -> Iterator[Document]:
    """Yield documents of about `wanted` tokens in all that tell 1 to 6 things in a text and then ask for one.

    texts: (language, text) to hide them in. Passkey retrieval (Mohtashami and Jaggi, 2023) and its form with several
    keys (RULER, Hsieh et al., 2024), at every depth and length up to the window, as plain text and as a chat. Raises
    DataError when there is no text.
    """
    if not texts:
        raise DataError("needle_tokens finds no text to hide anything in; give [[hay]] with texts, or a longer mix")
    random_ = random.Random(seed)
    made = 0
    while made < wanted:
        language, text = texts[random_.randrange(len(texts))]
        # log-uniform, as most real questions are near what they ask for
        filler = int(SHORTEST * (LONGEST / SHORTEST) ** random_.random())
        document = encoder.encode(_needles(language, encoder.snippet(text, filler, random_), random_))
        if len(document[0]) > LONGEST + 80:
            continue
        made += len(document[0])
        yield document


def _needles(language: str, text: str, random_: random.Random) -> Record:
    tell, ask, answer = random_.choice(NEEDLES["zh" if language.startswith("zh") else "en"])
    count = random_.randint(2, MOST_NEEDLES) if random_.random() < 0.4 else 1
    things = {_name(language, text, random_): _value(language, text, random_) for _ in range(count)}
    places = sorted((_place(text, random_) for _ in things), reverse=True)  # from the end, so none lands in another
    for at, (name, value) in zip(places, things.items(), strict=True):
        told = tell.format(name=name, value=value)
        text = f"{text[:at]}{random_.choice((' ', chr(10)))}{told}{random_.choice((' ', chr(10)))}{text[at:]}"
    name, value = random_.choice(list(things.items()))
    question, said = ask.format(name=name), answer.format(name=name, value=value)
    if random_.random() < 0.3:
        return Record(f"{text}\n\n{question} {said}", (), language, "recall")
    if random_.random() < 0.5:
        turns = [("user", f"{text}\n\n{question}"), ("assistant", said)]
    else:
        turns = [("user", text), ("assistant", "好的。" if language.startswith("zh") else "OK."), ("user", question)]
        turns.append(("assistant", said))
    return Record(None, tuple({"role": role, "content": content} for role, content in turns), language, "recall")


def _place(text: str, random_: random.Random) -> int:
    """Return where a thing is told: at the end of a line, or anywhere."""
    at = random_.randint(0, len(text))
    line_end = text.find("\n", at)
    return at if line_end < 0 or random_.random() < 0.3 else line_end + 1


def _name(language: str, text: str, random_: random.Random) -> str:
    if language.startswith("zh"):
        at = random_.randrange(max(1, len(text) - 4))
        return "".join(c for c in text[at : at + random_.randint(2, 4)] if c.isalnum()) or "密码"
    words = [word for word in (word.strip(".,;:!?()[]\"'*_#“”") for word in text.split()) if word.isalpha()]
    words = [word for word in words if len(word) > 3] or ["code"]
    return " ".join(random_.choice(words) for _ in range(random_.randint(1, 3)))


def _value(language: str, text: str, random_: random.Random) -> str:
    kind = random_.random()
    if kind < 0.6:
        return str(random_.randrange(10 ** (digits := random_.randint(2, 7)), 10 ** (digits + 1)))
    if kind < 0.8:
        return "".join(random_.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(random_.randint(3, 8)))
    return _name(language, text, random_)


def _snippet(plain: np.ndarray, size: int, random_: np.random.Generator) -> np.ndarray:
    first = int(random_.integers(0, len(plain) - size))
    return plain[first : first + size].astype(np.int64)
