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
        ("For {name}, dial {value}.", "What do I dial for {name}?", "{value}"),
        ("You will find {name} under {value}.", "Where is {name}?", "Under {value}."),
        ("Important: {value} is the {name}!", "What was the {name}?", "{value}"),
        ("One more thing, {name} has the number {value}.", "Which number has {name}?", "{value}"),
        ("{value} opens {name}. Do not forget {value}.", "What opens {name}?", "{value}"),
        ("The secret of {name}: {value}.", "What is the secret of {name}?", "The secret of {name} is {value}."),
        ("The number for {name} is {value}.", "What number belongs to {name}?", "{value}"),
        ("Among other things, the {name} was set to {value}.", "What was the {name} set to?", "{value}"),
        ("A key of {name} is {value}.", "Which key does {name} have?", "{value}"),
        ("{name} (see {value})", "What should one see for {name}?", "{value}"),
    ),
    "zh": (
        ("{name}是{value}。", "{name}是什么？", "{value}"),
        ("请记住，{name}是{value}。", "请告诉我{name}。", "{name}是{value}。"),
        ("{name}：{value}", "{name}：", "{value}"),
        ("我的{name}是{value}。", "我的{name}是多少？", "你的{name}是{value}。"),
        ("注意，{name}已改为{value}。", "现在的{name}是什么？", "{value}"),
        ("{name}的编号是{value}，不要忘记。", "{name}的编号是多少？", "{value}"),
        ("找{name}请拨{value}。", "找{name}拨什么号？", "{value}"),
        ("重要：{value}就是{name}！", "{name}是哪个？", "{value}"),
        ("打开{name}要用{value}，记住{value}。", "用什么打开{name}？", "用{value}。"),
        ("已知{name}为{value}。", "{name}等于几？", "{value}"),
        ("{name}的号码为{value}。", "{name}的号码是几？", "{value}"),
        ("{value}归{name}所有。", "什么归{name}所有？", "{value}"),
        ("{name}的暗号就是{value}。", "{name}的暗号为何？", "{value}"),
        ("{name}（{value}）", "{name}后面的括号里是什么？", "{value}"),
    ),
}
"""How a thing is told, asked for and answered. Names are words of the texts around, so that any name will do."""
OPENINGS: Final = {
    "en": ("", "", "Note this: ", "By the way: ", "Listen. ", "One thing more. ", "For later: ", "Attention! "),
    "zh": ("", "", "注意：", "顺便说一句，", "听好了，", "还有一件事，", "以后要用：", "请看："),
}
REMINDERS: Final = {
    "en": ("", "", " Remember it.", " Do not lose it.", " You will need it.", " Again: {value}.", " That is {name}."),
    "zh": ("", "", "请记住。", "不要忘了。", "以后会用到。", "再说一遍：{value}。", "这就是{name}。"),
}
"""What may stand before and after, so that few things are told in the same words."""
SHORTEST, LONGEST = 48, 940
"""Tokens of filler around needles: up to nearly a window of 1,024, the question and answer beside."""
FEW_NEEDLES, MOST_NEEDLES = 6, 16
NEEDLE_TOKENS = 45
"""About what telling, asking and answering one thing takes."""
SHORTEST_COPY, LONGEST_COPY = 48, 1000
"""Tokens of a recall document: up to a window of 1,024."""
LONGEST_SNIPPET = 128
"""Tokens, of what a recall document repeats at once."""


def recall_documents(
    documents: Documents, wanted: int, begin: int, end: int, *, control: int, seed: int
) -> Iterator[Document]:
    """Yield documents of `wanted` tokens in all, made of snippets of `documents`.

    Some repeat a snippet after a stretch of other text (A B A); most list short snippets and then repeat them all in
    another order (recall of many keys at once, as in MQAR: Arora et al., 2023), which asks for a leap every few tokens.
    The loss counts on the repeated parts alone. Ids under `control` are control tokens and are left out. Raises
    DataError when there is too little text to cut snippets from.
    """
    random_ = np.random.default_rng(seed)
    plain = documents.ids[documents.ids >= control]
    if len(plain) <= LONGEST_COPY:
        raise DataError(
            f"recall_tokens cuts snippets from the mix, but it has {len(plain)} tokens of text; "
            f"give more than {LONGEST_COPY}, or set recall_tokens = 0"
        )
    made = 0
    while made < wanted:
        parts, again = _parts(plain, _length(random_), random_)
        shown, repeated = np.concatenate(parts).tolist(), np.concatenate(again).tolist()
        ids = [begin, *shown, *repeated, end]
        made += len(ids)
        yield ids, [False] * (len(shown) + 1) + [True] * len(repeated) + [False]


def needle_documents(
    texts: Sequence[tuple[str, str]], wanted: int, encoder: Encoder, *, seed: int
) -> Iterator[Document]:
    """Yield documents of about `wanted` tokens in all that tell 1 to 16 things in a text and then ask for some.

    texts: (language, text) to hide them in. Passkey retrieval (Mohtashami and Jaggi, 2023) and its form with several
    keys (RULER, Hsieh et al., 2024), at every depth and length up to the window, as plain text and as a chat. The loss
    counts on the answers alone: they are a few tokens of each text, and would be lost among the rest. Raises DataError
    when there is no text.
    """
    if not texts:
        raise DataError("needle_tokens finds no text to hide anything in; give [[hay]] with texts, or a longer mix")
    random_ = random.Random(seed)
    made = 0
    while made < wanted:
        language, text = texts[random_.randrange(len(texts))]
        count = _count(random_)
        filler = int(SHORTEST * (LONGEST / SHORTEST) ** random_.random())
        text = encoder.snippet(text, max(SHORTEST, min(filler, LONGEST - NEEDLE_TOKENS * count)), random_)
        document = _document(*_needles(language, text, count, random_), language, encoder, random_)
        if len(document[0]) > LONGEST + 80:
            continue
        made += len(document[0])
        yield document


def _count(random_: random.Random) -> int:
    """Return how many things are told: one, a few, or many."""
    kind = random_.random()
    if kind < 0.35:
        return 1
    return random_.randint(2, FEW_NEEDLES) if kind < 0.7 else random_.randint(FEW_NEEDLES + 1, MOST_NEEDLES)


def _needles(language: str, text: str, count: int, random_: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text that tells `count` things, and questions and answers about some of them."""
    spoken = "zh" if language.startswith("zh") else "en"
    tell, ask, answer = random_.choice(NEEDLES[spoken])
    tell = f"{random_.choice(OPENINGS[spoken])}{tell}{random_.choice(REMINDERS[spoken])}"
    things = {_name(language, text, random_): _value(language, text, random_) for _ in range(count)}
    places = sorted((_place(text, random_) for _ in things), reverse=True)  # from the end, so none lands in another
    for at, (name, value) in zip(places, things.items(), strict=True):
        told = tell.format(name=name, value=value)
        text = f"{text[:at]}{random_.choice((' ', chr(10)))}{told}{random_.choice((' ', chr(10)))}{text[at:]}"
    wanted = random_.sample(sorted(things.items()), random_.randint(1, len(things)))
    return text, [(ask.format(name=name), answer.format(name=name, value=value)) for name, value in wanted]


def _document(
    text: str, asked: Sequence[tuple[str, str]], language: str, encoder: Encoder, random_: random.Random
) -> Document:
    """Put a text and what is asked about it together: line by line, or as a chat that asks at once or later."""
    if random_.random() < 0.3:
        pieces = [(f"{text}\n", False)]
        for question, said in asked:
            pieces += [(f"\n{question}", False), (f" {said}", True)]
        return encoder.encode_pieces(pieces)
    if random_.random() < 0.5:
        turns = [("user", f"{text}\n\n{asked[0][0]}"), ("assistant", asked[0][1])]
        asked = asked[1:]
    else:
        turns = [("user", text), ("assistant", "好的。" if language.startswith("zh") else "OK.")]
    turns += [turn for question, said in asked for turn in (("user", question), ("assistant", said))]
    said_by = tuple({"role": role, "content": content} for role, content in turns)
    return encoder.encode(Record(None, said_by, language, "recall"))


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


def _length(random_: np.random.Generator) -> int:
    """Return how long a recall document is: half evenly, half mostly short, as every window has its own lengths."""
    share = random_.random()
    if random_.random() < 0.5:
        return int(SHORTEST_COPY + (LONGEST_COPY - SHORTEST_COPY) * share)
    return int(SHORTEST_COPY * (LONGEST_COPY / SHORTEST_COPY) ** share)


def _parts(plain: np.ndarray, length: int, random_: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what a recall document of about `length` tokens shows, and what it repeats of that."""
    if random_.random() < 0.4:
        size = int(random_.integers(8, max(9, min(LONGEST_SNIPPET, length // 2) + 1)))
        parts = [_snippet(plain, size, random_), _snippet(plain, max(0, length - 2 * size), random_)]
        if random_.random() < 0.5:
            random_.shuffle(parts[0])  # no grammar to lean on: only the copy helps
        return parts, parts[:1]
    parts = []
    while sum(map(len, parts)) < length // 2:
        parts.append(_snippet(plain, int(random_.integers(3, 25)), random_))
        if random_.random() < 0.3:
            random_.shuffle(parts[-1])
    return parts, [parts[number] for number in random_.permutation(len(parts))]


def _snippet(plain: np.ndarray, size: int, random_: np.random.Generator) -> np.ndarray:
    first = int(random_.integers(0, len(plain) - size))
    return plain[first : first + size].astype(np.int64)
