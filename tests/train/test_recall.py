"""Documents made to be copied from: what they repeat was shown, what they ask for was told."""

import re

import pytest
from tiny_packs import TOKENIZER
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.text.template import BEGIN, CONTROL_TOKENS, END, ROLES
from modularbase_core.train.encoding import Encoder, control_id, join
from modularbase_core.train.recall import LONGEST, LONGEST_COPY, NEEDLES, needle_documents, recall_documents

ENGLISH = "It was a bright morning in the harbour.\nBoats came home, and gulls cried over the quiet water. " * 60
CHINESE = "港口的早晨很明亮。船只归来，海鸥在平静的水面上鸣叫。\n渔夫们把网晒在岸边，孩子们数着星星。" * 60
HAY = [("en", ENGLISH), ("zh", CHINESE), ("zh-Hant", CHINESE[:500])]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def test_recall_documents_repeat_what_they_showed_and_learn_only_that() -> None:
    texts = join([([number], [True]) for number in range(5, 4000)])
    made = list(recall_documents(texts, 20_000, 0, 1, control=5, seed=1))
    assert 20_000 <= sum(len(ids) for ids, _ in made) < 21_100
    for ids, learn in made:
        assert (ids[0], ids[-1], len(ids)) == (0, 1, len(learn))
        learnt = [token for token, counts in zip(ids, learn, strict=True) if counts]
        shown = ids[1 : learn.index(True)]
        assert learnt
        assert set(learnt) <= set(shown)
        assert len(ids) <= LONGEST_COPY + 50


def test_recall_documents_hold_no_control_token_of_the_text() -> None:
    texts = join([([0, 2, *range(5, 1600), 1], [True] * 1598)])
    for ids, _ in recall_documents(texts, 2000, 0, 1, control=5, seed=1):
        assert min(ids[1:-1]) >= 5


def test_too_little_text_to_cut_snippets_from_is_one_sentence() -> None:
    texts = join([([0, *range(5, 100)], [True] * 96)])
    with pytest.raises(DataError, match="it has 95 tokens of text; give more than 1000, or set recall_tokens = 0"):
        next(recall_documents(texts, 100, 0, 1, control=5, seed=1))


def asked(before: str, question: str, said: str) -> set[str]:
    """Return the ways of telling a thing whose question and answer these are, and which were told before."""
    out = set()
    for tell, ask, answer in (one for language in NEEDLES.values() for one in language):
        names = re.fullmatch(re.escape(ask).replace(r"\{name\}", "(?P<name>.+)"), question, re.S)
        values = re.fullmatch(re.escape(answer).replace(r"\{name\}", ".+").replace(r"\{value\}", "(?P<v>.+)"), said)
        if names and values and (told := tell.format(name=names["name"], value=values["v"])) in before:
            out.add(told)
    return out


def test_what_a_needle_document_asks_for_was_told_before(tokenizer: Tokenizer) -> None:
    control = [control_id(tokenizer, token) for token in CONTROL_TOKENS]
    begin, end = control_id(tokenizer, BEGIN), control_id(tokenizer, END)
    made = list(needle_documents(HAY, 60_000, Encoder(tokenizer, response_only=True), seed=1))
    depths, kinds = [], set()
    for ids, learn in made:
        assert ids[0] == begin
        assert ids[-1] == end
        assert 48 < len(ids) <= LONGEST + 80
        assert len(ids) == len(learn)
        turns, roles = [], []
        for token in ids[1:]:
            if token in control and token != end:
                roles.append(token)
                turns.append([])
            elif token != end:
                turns = turns or [[]]
                turns[-1].append(token)
        said = [tokenizer.decode(turn) for turn in turns]
        kinds.add(len(said))
        if len(said) == 1:  # plain text: each line asks, and its last word or words answer
            text, _, lines = said[0].rpartition("\n\n")
            pairs = [
                [(line[:at], line[at + 1 :]) for at in range(len(line)) if line[at] == " "]
                for line in lines.split("\n")
            ]
        else:
            *texts, question = said[0].rpartition("\n\n") if said[1] not in ("OK.", "好的。") else (said[0], "", "")
            text = "".join(texts)
            rest = said[2:] if not question else [question, *said[1:]]
            pairs = [[pair] for pair in zip(rest[::2], rest[1::2], strict=True)]
            assert roles[-1] == control_id(tokenizer, ROLES["assistant"])
            learnt = [token for token, counts in zip(ids, learn, strict=True) if counts]
            assert tokenizer.decode(learnt).endswith(said[-1])
        for ways in pairs:
            told = set().union(*(asked(text, question, answer) for question, answer in ways))
            assert told, said
            once = max(told, key=len)
            depths.append(text.index(once) / len(text))
    assert kinds >= {1, 2, 4, 6}
    assert min(depths) < 0.1
    assert max(depths) > 0.9


def test_needle_documents_depend_on_the_seed_alone(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, response_only=False)
    first, again, other = (list(needle_documents(HAY, 3000, encoder, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(len(ids) for ids, _ in first) >= 3000


def test_no_text_to_hide_things_in_is_one_sentence(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, response_only=False)
    with pytest.raises(DataError, match=r"give \[\[hay\]\] with texts"):
        next(needle_documents([], 1000, encoder, seed=1))
