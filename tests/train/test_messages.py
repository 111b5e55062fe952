"""Labelled messages come from lines and phrases, chosen by what a recipe's source asks for."""

import json
from collections import Counter

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.recipe import Source

ROWS = [
    {"text": f"{domain} {language} {number}", "domain": domain, "intent": f"i{number % 2}", "lang": language}
    for domain in ("python", "medical")
    for language in ("en", "zh")
    for number in range(6)
]


@pytest.fixture
def folders(tmp_path):
    """The data folder with lines, the recipe's own folder with phrases."""
    data, own = tmp_path / "data", tmp_path / "recipe"
    data.mkdir()
    own.mkdir()
    write_lines(data / "rows.jsonl", ROWS)
    (own / "phrases.toml").write_text(
        'domain = "legal"\n[[requests]]\nintent = "lease"\nlang = "en"\ntexts = ["my landlord"]'
    )
    return data, own


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folders, *sources, seed=0):
    return read_messages(sources, *folders, seed)


def test_at_most_so_many_messages_are_read_in_random_order(folders):
    everything = read(folders, Source(files=("rows.jsonl",), tokens=100))
    assert Counter(one.text for one in everything) == Counter(row["text"] for row in ROWS)
    assert [one.text for one in everything] != [row["text"] for row in ROWS]
    assert read(folders, Source(files=("rows.jsonl",), tokens=5)) == everything[:5]
    assert read(folders, Source(files=("rows.jsonl",), tokens=100), seed=1) != everything


def test_a_source_keeps_the_languages_and_domains_that_it_names(folders):
    got = read(folders, Source(files=("rows.jsonl",), tokens=100, languages=("zh",), domains=("python",)))
    assert {(one.domain, one.language) for one in got} == {("python", "zh")}
    assert len(got) == 6


def test_a_message_keeps_its_labels_unless_the_source_gives_its_own_domain(folders):
    got = read(folders, Source(files=("rows.jsonl",), tokens=100, domains=("python",), languages=("en",)))
    assert Labelled("python en 3", "python", "i1", "en") in got
    got = read(folders, Source(files=("rows.jsonl",), tokens=100, domain="other", languages=("en",)))
    # what was said stays part of the intent, so that intents of two domains do not become one
    assert Labelled("python en 3", "other", "python/i1", "en") in got
    assert Labelled("medical en 3", "other", "medical/i1", "en") in got


def test_sources_follow_one_another_and_may_have_several_files(folders):
    write_lines(folders[0] / "more.jsonl", [{"text": "more"}])
    got = read(
        folders,
        Source(files=("more.jsonl",), tokens=9),
        Source(files=("rows.jsonl", "more.jsonl"), tokens=99),
    )
    assert got[0] == Labelled("more")
    assert len(got) == 1 + len(ROWS) + 1


def test_phrases_are_found_beside_the_recipe_and_the_data_folder_comes_first(folders):
    source = Source(files=("phrases.toml",), tokens=9)
    (one,) = {(one.text, one.domain, one.intent, one.language) for one in read(folders, source)}
    assert one == ("my landlord", "legal", "lease", "en")
    shadow = (folders[1] / "phrases.toml").read_text().replace("legal", "theirs")
    (folders[0] / "phrases.toml").write_text(shadow)
    assert read(folders, source)[0].domain == "theirs"


def test_conversations_and_pairs_give_what_the_user_says_first(folders):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    write_lines(folders[0] / "said.jsonl", [{"messages": turns}, {"prompt": "asked", "response": "told"}])
    got = read(folders, Source(files=("said.jsonl",), tokens=9))
    assert {one.text for one in got} == {"first", "asked"}


@pytest.mark.parametrize(
    ("files", "more", "told"),
    [
        (("rows.jsonl",), {"languages": ("fr",)}, "no message in rows.jsonl matches the recipe"),
        (("rows.jsonl", "rows.jsonl"), {"domains": ("law",)}, "no message in rows.jsonl, rows.jsonl matches"),
        (("none.jsonl",), {}, "none.jsonl does not exist"),
        (("none.toml",), {}, "none.toml: No such file"),
        (("bad.jsonl",), {}, "bad.jsonl:2 is not JSON"),
        (("empty.jsonl",), {}, "no message in empty.jsonl matches the recipe"),
        (("silent.jsonl",), {}, "a record of silent.jsonl"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(folders, files, more, told):
    (folders[0] / "bad.jsonl").write_text('{"text": "a"}\n{')
    (folders[0] / "empty.jsonl").write_text("\n\n")
    write_lines(folders[0] / "silent.jsonl", [{"messages": [{"role": "assistant", "content": "hello"}]}])
    with pytest.raises(DataError) as raised:
        read(folders, Source(files=files, tokens=9, **more))
    assert told in str(raised.value)
