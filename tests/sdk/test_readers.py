import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from modularbase_core.errors import ManifestError
from modularbase_core.sdk import readers
from modularbase_core.sdk.readers import READERS, as_specifier


@given(st.from_regex(readers.VERSION, fullmatch=True))
def test_every_version_is_one_to_packaging(text):
    assert not Version(text).local


@given(st.from_regex(readers.SPECIFIER, fullmatch=True))
def test_every_range_is_one_to_packaging(text):
    SpecifierSet(text)


@given(st.from_regex(readers.BASE_VERSION, fullmatch=True))
def test_every_base_version_is_a_range_to_packaging(text):
    SpecifierSet(as_specifier(text))


@pytest.mark.parametrize("text", ["1.0", "==1.0rc1", ">=1.0", ">=1.0, <2", "~=1.1", "==1.*", "!=1.3"])
def test_usual_base_versions_are_taken(text):
    assert READERS["base_compatibility"]([text], "base_compatibility") == (text,)


@pytest.mark.parametrize(
    "text", ["", "v1", "1.0rc1", "1.0-beta", "=1.0", "~=1", ">=1.*", "===1.0", "1!1.0", "1.0+cu12", "1.0\n"]
)
def test_unusual_base_versions_are_refused(text):
    with pytest.raises(ManifestError, match=r"use a version like 1\.0 or a range like >=1.0,<2"):
        READERS["base_compatibility"]([text], "base_compatibility")


@pytest.mark.parametrize("text", ["en", "zh", "yue", "zh-Hans", "zh-Hant-TW", "pt-BR", "es-419", "sl-nedis"])
def test_usual_language_codes_are_taken(text):
    assert READERS["languages"]([text], "languages") == (text,)


@pytest.mark.parametrize("text", ["", "e", "EN", "zh_CN", "zh-hans", "pt-br", "english", "中文", "en\n"])
def test_unusual_language_codes_are_refused(text):
    with pytest.raises(ManifestError, match="use a code like en, zh-Hans or pt-BR"):
        READERS["languages"]([text], "languages")


@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer/tokenizer.json", "a/b/c-1_2.json", "x"])
def test_paths_inside_the_pack_are_taken(path):
    assert READERS["files"]({path: "0" * 64}, "files") == {path: "0" * 64}


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/a", "a/", "a//b", "a/../b", "./a", ".a", "a\\b", "a b", "C:a", "a\n", "包.json", "a" * 201],
)
def test_paths_that_are_odd_or_lead_out_of_the_pack_are_refused(path):
    with pytest.raises(ManifestError, match="use a path of a file inside the pack"):
        READERS["files"]({path: "0" * 64}, "files")


@pytest.mark.parametrize("name", ["SPECIFIER", "BASE_VERSION", "LANGUAGE", "PATH", "URL", "ID"])
def test_a_pattern_is_fast_on_what_almost_fits(name):
    almost = {"SPECIFIER": ">=1.0," * 33, "BASE_VERSION": "1." * 100, "LANGUAGE": "en" + "-abcdef" * 14}
    text = almost.get(name, "a" * 200) + "!"
    assert re.fullmatch(getattr(readers, name), text if name != "URL" else "https://" + "a." * 900 + " ") is None
