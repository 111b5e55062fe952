import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modularbase_core.errors import WeightsError
from modularbase_core.sdk.jsonfile import parse_json, read_json, shown

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18) + 1, 10**18 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values, st.booleans())
@example("\U0001f600", True)  # a surrogate pair, escaped
def test_what_json_can_say_is_read(value, is_escaped):
    assert parse_json(json.dumps(value, ensure_ascii=is_escaped).encode()) == value


@given(st.binary(max_size=30))
def test_any_bytes_are_read_as_the_library_reads_them_or_refused(content):
    try:
        value = parse_json(content)
    except ValueError:
        return
    assert value == json.loads(content)


def test_the_reader_raises_the_error_it_is_told_to(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_json(tmp_path / "a.json", 6, WeightsError) == [1, 2]
    for limit, name, told in ((5, "a.json", "is larger than"), (6, "b.json", "is missing")):
        with pytest.raises(WeightsError, match=told):
            read_json(tmp_path / name, limit, WeightsError)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("a", "'a'"),
        ("\x1b[2J\n", r"'\x1b[2J\n'"),
        ("x" * 100, "'" + "x" * 59 + "... (102 characters)"),
    ],
)
def test_a_value_is_shown_short_and_harmless(value, told):
    assert shown(value) == told


def test_a_value_that_python_cannot_show_is_named():
    value = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "a list that is nested too deeply"
