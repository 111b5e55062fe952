"""Phrases with slots become messages, as people would type them."""

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.phrases import FILLINGS, SPELLINGS, read_phrases

PHRASES = """
domain = "medical"

[slots]
body = ["knee", "back", "ear"]
days = [2, 3]

[[requests]]
intent = "symptom"
lang = "en"
texts = ["My {body} hurts since {days} days.", "I feel ill!"]

[[requests]]
intent = "名称"
lang = "zh"
texts = ["{body}"]
"""


@pytest.fixture
def file(tmp_path):
    """Write phrases and read them."""

    def read(content, seed=0):
        path = tmp_path / "phrases.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_phrases(path, seed=seed)

    return read


def plain(row):
    return row["text"].lower().rstrip(".!")


def test_slots_are_filled_with_their_words(file):
    rows = [row for row in file(PHRASES) if "hurts" in plain(row)]
    wanted = {f"my {body} hurts since {days} days" for body in ("knee", "back", "ear") for days in (2, 3)}
    assert {plain(row) for row in rows} == wanted
    assert len(rows) <= FILLINGS
    assert {(row["domain"], row["intent"], row["lang"]) for row in rows} == {("medical", "symptom", "en")}


def test_a_list_of_words_gives_each_word_once(file):
    assert [plain(row) for row in file(PHRASES) if row["lang"] == "zh"] == ["knee", "back", "ear"]


def test_a_phrase_without_slots_comes_in_few_spellings_and_none_twice(file):
    spellings = [row["text"] for seed in range(20) for row in file(PHRASES, seed) if "ill" in row["text"]]
    assert set(spellings) == {"I feel ill!", "i feel ill!", "I feel ill", "i feel ill"}
    for seed in range(20):
        texts = [row["text"] for row in file(PHRASES, seed)]
        assert sum("ill" in text for text in texts) <= SPELLINGS
        assert len(set(texts)) == len(texts)


def test_full_width_punctuation_is_sometimes_typed_as_ascii(file):
    phrase = 'domain = "x"\n[[requests]]\nintent = "i"\nlang = "zh"\ntexts = ["你好，世界？"]'
    texts = {row["text"] for seed in range(20) for row in file(phrase, seed)}
    assert {"你好，世界？", "你好,世界?"} <= texts
    assert all(text.strip("你好世界，？,?") == "" for text in texts)


def test_a_text_of_punctuation_alone_does_not_become_empty(file):
    phrase = 'domain = "x"\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = ["???"]'
    assert {row["text"] for seed in range(20) for row in file(phrase, seed)} == {"???"}


def test_without_slots_braces_are_only_text(file):
    phrase = 'domain = "x"\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = ["a set {a}", "{b}"]'
    assert {plain(row) for row in file(phrase)} == {"a set {a}", "{b}"}


def test_a_seed_repeats_itself_and_another_differs(file):
    assert file(PHRASES, 1) == file(PHRASES, 1)
    assert file(PHRASES, 1) != file(PHRASES, 2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("domain = ", "is not TOML"),
        (b"\xff", "is not TOML"),
        ("", "is not a file of phrases ('domain')"),
        ('domain = "x"', "is not a file of phrases ('requests')"),
        ('domain = "x"\nrequests = ["a"]', "is not a file of phrases"),
        ('domain = "x"\nrequests = 3', "is not a file of phrases"),
        ('domain = "x"\n[[requests]]\nintent = "i"\ntexts = ["a"]', "is not a file of phrases ('lang')"),
        ('[[requests]]\nintent = "i"\nlang = "en"\ntexts = ["a"]', "is not a file of phrases ('domain')"),
        ('domain = "x"\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = [3]', "is not a file of phrases"),
        ('domain = "x"\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = "hello"', "is not a file of phrases"),
        ('domain = 3\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = ["a"]', "is not a file of phrases"),
        (PHRASES.replace("{days}", "{dayz}"), "names the slot 'dayz', which has no words; add them under [slots]"),
        (PHRASES.replace("[2, 3]", "[]"), "names the slot 'days', which has no words"),
        (PHRASES.replace("[2, 3]", "3"), "is not a file of phrases (3 is no list)"),
        (PHRASES.replace("[2, 3]", '"2"'), "is not a file of phrases ('2' is no list)"),
        ('slots = 3\ndomain = "x"\n[[requests]]\nintent = "i"\nlang = "en"\ntexts = ["{a}"]', "(3 is no dict)"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_one_sentence(file, tmp_path, content, told):
    with pytest.raises(DataError) as raised:
        file(content)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path / 'phrases.toml'}")
    assert told in said
    assert "\n" not in said


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.toml: No such file"):
        read_phrases(tmp_path / "none.toml", seed=0)
