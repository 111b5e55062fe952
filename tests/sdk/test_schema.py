import copy
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from drawing import EXAMPLE_OF_THE_DESIGN, EXAMPLE_OF_VERSIONS, manifests
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from modularbase_core.errors import ManifestError
from modularbase_core.sdk import readers
from modularbase_core.sdk.architecture import (
    LARGEST,
    BaseArchitecture,
    Blocks,
    PackArchitecture,
    RouterArchitecture,
    Window,
)
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.schema import manifest_schema

ROOT = Path(__file__).parents[2]
SCHEMA = manifest_schema()
VALIDATOR = Draft202012Validator(SCHEMA)

# what a schema cannot say, by the sentence that the reader says of it
BEYOND_A_SCHEMA = (
    r"sink_tokens \+ recent_tokens \+ block_tokens is",  # sums
    r"(heads|width) \d+ is not a multiple of (kv_)?heads",  # quotients
    r"experts_per_token \d+ is not in 1\.\.",  # one key against another
    r"head_rank is \d+ and vocabulary_size \d+; give both",
    r"is .*, but its architecture has",
    r"downloads names .*, which files does not",
    r"names .*, the pack itself",
    r"is -?\d+\.0; expected",  # to a schema 6.0 is a whole number
    r"\\n'; use",  # to Python's search, `$` is before a last line end too
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """Yield the path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def almost_manifests(draw):
    """Draw what a manifest becomes when some of it is changed, removed, added or misspelt."""
    value = copy.deepcopy(draw(manifests()).to_dict())
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(sorted(places(value), key=str) or [("id",)]))
        owner = value
        for key in path:
            owner = owner[key]
        match draw(st.sampled_from(["change", "nudge", "remove", "add", "misspell"])):
            case "change":
                owner[last] = draw(values)
            case "nudge" if type(owner[last]) in (int, float):
                owner[last] = owner[last] + draw(st.sampled_from([-1, 1, 0.5, 16, 1 << 20, 0.0]))
            case "nudge" if isinstance(owner[last], str):
                place = draw(st.integers(0, len(owner[last])))
                owner[last] = owner[last][:place] + draw(st.text(max_size=2)) + owner[last][place:]
            case "remove":
                del owner[last]
            case "add" if isinstance(owner, dict):
                owner[draw(st.text(max_size=5) | st.sampled_from(sorted(SCHEMA["properties"])))] = draw(values)
            case "misspell" if isinstance(owner, dict):
                owner[f"{last}{draw(st.text(max_size=1))}"] = owner.pop(last)
        if not value:
            break
    return value


@given(manifests())
def test_what_the_reader_writes_is_what_the_schema_describes(described):
    plain = json.loads(json.dumps(described.to_dict()))
    VALIDATOR.validate(plain)
    assert Manifest.from_dict(plain) == described


@settings(max_examples=400)
@given(almost_manifests() | values)
def test_the_reader_refuses_whatever_the_schema_refuses_and_little_else(value):
    try:
        Manifest.from_dict(value)
    except ManifestError as error:
        told = str(error)
        assert "\n" not in told
        if VALIDATOR.is_valid(value):
            assert any(re.search(rule, told) for rule in BEYOND_A_SCHEMA), told
    else:
        VALIDATOR.validate(value)


@pytest.mark.parametrize("text", [EXAMPLE_OF_THE_DESIGN, EXAMPLE_OF_VERSIONS])
def test_the_examples_of_the_design_are_described(text):
    VALIDATOR.validate(json.loads(text))


SHIPPED = sorted((ROOT / "plugins_example").rglob("manifest.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_manifests_of_the_shipped_packs_are_described(path):
    VALIDATOR.validate(json.loads(path.read_text(encoding="utf-8")))


def test_the_schema_is_sound_and_says_which_version_it_is():
    Draft202012Validator.check_schema(SCHEMA)
    assert (SCHEMA["$id"], SCHEMA["$schema"]) == (
        "urn:modularbase:manifest:1",
        "https://json-schema.org/draft/2020-12/schema",
    )


def properties(schema):
    """Yield every property that is described anywhere in the schema, with its name."""
    if isinstance(schema, dict):
        for key, item in schema.items():
            if key == "properties":
                yield from item.items()
            if key not in ("if", "then", "else"):  # those only restrict what is described elsewhere
                yield from properties(item)


def test_every_key_is_described():
    plain = [name for name, item in properties(SCHEMA) if "$ref" not in item and name != "kind"]
    described = [name for name, item in properties(SCHEMA) if "description" in item]
    assert plain == described
    assert set(SCHEMA["properties"]) == set(readers.READERS)


def test_sizes_are_limited_as_the_reader_limits_them():
    limits = [
        (name, item["maximum"])
        for key in SCHEMA["$defs"].values()
        for name, item in properties(key)
        if "maximum" in item
    ]
    assert limits
    assert limits == [(name, LARGEST[name]) for name, _ in limits]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base", BaseArchitecture),
        ("pack", PackArchitecture),
        ("router", RouterArchitecture),
        ("blocks", Blocks),
        ("window", Window),
    ],
)
def test_networks_are_described_field_by_field(name, kind):
    described = {key: item for key, item in SCHEMA["$defs"][name]["properties"].items() if key != "kind"}
    known = {field.name: field for field in fields(kind)}
    assert list(described) == list(known)
    required = [key for key in SCHEMA["$defs"][name].get("required", ()) if key != "kind"]
    assert required == [
        key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING
    ]
    for key, item in described.items():
        assert item.get("default", MISSING) == known[key].default


def test_the_page_on_the_format_tells_of_every_key():
    page = (ROOT / "docs/pack-format.md").read_text(encoding="utf-8")
    told = page[: page.index("## Weights")]  # other tables follow
    rows = [row.split("|")[1] for row in told.splitlines() if row.startswith("| `")]
    assert [key for row in rows for key in re.findall(r"`(\w+)`", row)] == list(SCHEMA["properties"])
