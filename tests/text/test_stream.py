from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.text.stream import TextStream

# Few letters, so that stop strings overlap, begin inside each other and are met.
TEXTS = st.text("ab中é\ufffd", max_size=40) | st.text(max_size=20)
STOPS = st.lists(st.text("ab中é\ufffd", min_size=1, max_size=5), max_size=4)


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read character by character until a stop string is complete; the longest of those."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(st.data(), TEXTS.map(str.encode) | st.binary(max_size=30), STOPS)
def test_any_split_gives_the_text_up_to_the_first_stop(data: st.DataObject, content: bytes, stops: list[str]) -> None:
    text, stop = expected(content.decode(errors="replace"), stops)
    stream, shown = TextStream(stops), ""
    for piece in data.draw(pieces_of(content)):
        shown += stream.feed(piece)
        assert text.startswith(shown)  # nothing has to be taken back
    shown += stream.finish()
    assert (shown, stream.stop) == (text, stop)


@given(st.data(), TEXTS.map(str.encode), STOPS)
def test_no_beginning_of_a_stop_string_is_shown(data: st.DataObject, content: bytes, stops: list[str]) -> None:
    stream, shown, given_so_far = TextStream(stops), "", b""
    for piece in data.draw(pieces_of(content)):
        shown += stream.feed(piece)
        given_so_far += piece
        if stream.stop is None:
            so_far = given_so_far.decode(errors="ignore")
            begun = [size for stop in stops for size in range(len(stop)) if so_far.endswith(stop[:size])]
            assert len(so_far) - len(shown) == max(begun, default=0)  # and no more than that is held back


def test_a_character_is_shown_when_it_is_whole() -> None:
    stream = TextStream()
    assert [stream.feed(bytes([byte])) for byte in "é中👩".encode()] == ["", "é", "", "", "中", "", "", "", "👩"]
    assert stream.finish() == ""


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    stream = TextStream()
    assert stream.feed("中".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_a_stop_string_over_many_tokens_is_not_leaked() -> None:
    stream = TextStream(["\nUser:"])
    assert [stream.feed(piece) for piece in (b"Hi", b"\n", b"Us", b"er", b": more")] == ["Hi", "", "", "", ""]
    assert stream.stop == "\nUser:"
    assert stream.feed(b"more") == stream.finish() == ""


def test_what_looked_like_a_stop_string_is_given_out_when_it_is_none() -> None:
    stream = TextStream(["\nUser:"])
    assert [stream.feed(piece) for piece in (b"\nUs", b"e", b"ful\n")] == ["", "", "\nUseful"]
    assert stream.finish() == "\n"
    assert stream.stop is None


def test_the_stop_that_is_complete_first_counts_and_of_several_the_longest() -> None:
    for stops, text, stop in ((["bc", "abcd"], "xa", "bc"), (["c", "bc", "abc"], "x", "abc")):
        stream = TextStream(stops)
        assert stream.feed(b"xabcd") == text
        assert stream.stop == stop
