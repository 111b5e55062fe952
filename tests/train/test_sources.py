"""The catalogue of public texts: ours is sound, and a mistake in anyone's is one sentence."""

import re

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.sources import CATALOGUE, choose, read_catalogue

DOMAINS = {"base", "chat", "creative", "legal", "medical", "python", "reasoning", "router"}
SOUND = 'name = "a"\nwhat = "x"\nlicence = "MIT"\nurls = ["https://x.org/a.zip"]\n'


def test_every_source_of_ours_says_what_it_is_under_which_licence_and_where():
    sources = read_catalogue()
    assert len(sources) > 90
    for source in sources.values():
        assert source.what
        assert source.licence
        assert source.home.startswith("https://")
        assert source.domains
        assert set(source.domains) <= DOMAINS
        assert source.languages
        assert source.text_mb > 0
        assert all(url.startswith("https://") for url in source.urls)
        assert len(set(source.file_names())) == len(source.urls)
        assert not re.search(r"\bNC\b|NonCommercial", source.licence)


def test_what_its_owners_do_not_want_to_be_learnt_from_is_not_there():
    assert "openstax" not in CATALOGUE.read_text(encoding="utf-8").lower()


def test_files_are_called_by_what_they_are_of():
    sources = read_catalogue()
    assert sources["gsm8k"].file_names() == ("grade-school-math-3101c7d507.tar.gz",)
    assert sources["dolly-15k"].file_names() == ("databricks-dolly-15k.jsonl",)
    assert sources["software-carpentry"].file_names() == ("shell-novice-f095fbcb70.tar.gz", "git-novice-main.tar.gz")


def catalogue(tmp_path, *tables):
    path = tmp_path / "sources.toml"
    path.write_text("".join(f"[[source]]\n{table}" for table in tables))
    return path


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        ('["https://x.org/a/b.zip", "https://y.org/b.zip"]', ("1-b.zip", "2-b.zip")),
        ('["https://x.org/"]', ("a",)),
        ('["file:///data/%2e%2e"]', ("2e-2e",)),
        ('["https://x.org/.hidden?x=../../y"]', ("hidden",)),
    ],
)
def test_a_name_on_the_disk_is_safe_and_unlike_the_others(tmp_path, urls, names):
    table = SOUND.replace('["https://x.org/a.zip"]', urls)
    assert read_catalogue(catalogue(tmp_path, table))["a"].file_names() == names


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("licence", "license"), r"source 1 has the unknown key 'license' (did you mean 'licence'?)"),
        (('what = "x"\n', ""), "source 1 lacks 'what'"),
        (('"MIT"', "5"), "source 1: licence is 5; expected a string"),
        (('["https://x.org/a.zip"]', '"https://x.org/a.zip"'), "expected a list of strings"),
        (('["https://x.org/a.zip"]', "[]"), "the source 'a' has no urls; name at least one"),
        (("https://x.org/a.zip", "ftp://x.org/a"), "names 'ftp://x.org/a'; use one of https, http, file"),
        (('name = "a"', 'name = "../a"'), "the source '../a': use lower-case letters and digits"),
        (("]\n", ']\nsha256 = ["1"]\n'), "has the sha256 '1'; give 64 hex digits"),
        (("]\n", ']\nsha256 = ["", ""]\n'), 'has 2 sha256 for 1 urls; give one for each, "" where it is not known'),
        (("]\n", ']\ntext_mb = "5"\n'), "text_mb is '5'; expected a number"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, change, told):
    with pytest.raises(DataError, match=re.escape(told)):
        read_catalogue(catalogue(tmp_path, SOUND.replace(*change)))


def test_what_is_no_catalogue_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="two sources are called 'a'; rename one"):
        read_catalogue(catalogue(tmp_path, SOUND, SOUND))
    for text, told in (
        ("[", "is not TOML"),
        ("x = 1", "holds other things than"),
        ("source = 1", "holds other things"),
    ):
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(DataError, match=told):
            read_catalogue(tmp_path / "x.toml")
    with pytest.raises(DataError, match=r"cannot read the catalogue .*none"):
        read_catalogue(tmp_path / "none")


def test_sources_are_chosen_by_name_once_and_the_nearest_is_told():
    sources = read_catalogue()
    assert [one.name for one in choose(sources, ["gsm8k", "mbpp", "gsm8k"])] == ["gsm8k", "mbpp"]
    with pytest.raises(
        DataError, match=r"no source 'gsm8' is listed \(did you mean 'gsm8k'\?\); `modularbase data list`"
    ):
        choose(sources, ["gsm8"])
