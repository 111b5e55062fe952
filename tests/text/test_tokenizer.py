import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.errors import InputError, TokenizerError
from modularbase_core.text.template import CONTROL_TOKENS
from modularbase_core.text.tokenizer import Tokenizer

PATH = Path(__file__).parents[2] / "plugins_example/modularbase-nano/modularbase_nano/base/tokenizer/tokenizer.json"
TOKENIZER = Tokenizer.load(PATH)
TEXTS = st.text() | st.lists(
    st.sampled_from(
        [*CONTROL_TOKENS, "你好", " 世界。", "def f(x):\n    ", "\r\n", "\t", "👩‍👩‍👧", "e\u0301", "\0", "it's "]
    )
).map("".join)


@given(TEXTS)
def test_decoding_what_was_encoded_gives_the_text_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()


@given(TEXTS, st.sampled_from(CONTROL_TOKENS), TEXTS)
def test_typed_control_tokens_are_plain_text(before: str, name: str, after: str) -> None:
    controls = {TOKENIZER.control(name) for name in CONTROL_TOKENS}
    assert controls.isdisjoint(TOKENIZER.encode(before + name + after))


def test_control_tokens_take_the_first_ids_and_stand_for_no_bytes() -> None:
    assert [TOKENIZER.control(name) for name in CONTROL_TOKENS] == list(range(len(CONTROL_TOKENS)))
    assert TOKENIZER.decode(range(len(CONTROL_TOKENS))) == ""


def test_every_byte_has_a_token() -> None:
    pieces = [TOKENIZER.token_bytes(i) for i in range(TOKENIZER.vocabulary_size)]
    assert {piece for piece in pieces if len(piece) == 1} == {bytes([byte]) for byte in range(256)}


def test_broken_utf8_is_replaced_when_decoding() -> None:
    first = next(i for i in range(TOKENIZER.vocabulary_size) if TOKENIZER.token_bytes(i) == b"\xe4")
    assert TOKENIZER.decode([first]) == "\ufffd"


@pytest.mark.parametrize(
    "text",
    ["a" * 300_000, " " * 300_000 + "a", "你" * 100_000, "\n" * 300_000],
    ids=["letters", "blanks", "Chinese", "lines"],
)
def test_monotonous_long_text_is_encoded_in_little_time(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"character 3 of the text is the lone surrogate U\+D800; give valid UTF-8"):
        TOKENIZER.encode("ab\ud800")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"cannot read the tokenizer .*none\.json: No such file"):
        Tokenizer.load(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", PATH.read_bytes()[:9000]])
def test_a_damaged_file_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="install the base pack again"):
        Tokenizer.load(path)


def test_a_tokenizer_without_control_tokens_is_refused(tmp_path: Path) -> None:
    value = json.loads(PATH.read_text(encoding="utf-8"))
    value["added_tokens"] = value["added_tokens"][:1]
    for name in CONTROL_TOKENS[1:]:
        del value["model"]["vocab"][name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"lacks the control tokens <\|end\|>, <\|system\|>"):
        Tokenizer.load(path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    value = json.loads(PATH.read_text(encoding="utf-8"))
    names = [*CONTROL_TOKENS, "中"]
    value["model"] = {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(TokenizerError, match="is not byte-level: token 5 is '中'"):
        Tokenizer.load(path)
