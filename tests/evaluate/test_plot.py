"""The plot is sound SVG with a number in every cell, coloured by what it is against."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.errors import DataError
from modularbase_core.evaluate.plot import plot_forgetting, plot_perplexity

SVG = "{http://www.w3.org/2000/svg}"


def described(rows):
    made = {}
    for name, cells in rows.items():
        domains = {domain: {"perplexity": value, "ratio": ratio} for domain, (value, ratio) in cells.items()}
        made[name] = {"domains": domains, "all": next(iter(domains.values()))}
    return {"metrics": {"perplexity": made}}


def drawn(svg):
    root = ElementTree.fromstring(svg)
    texts = [(one.text, float(one.get("x")), one.get("fill")) for one in root.iter(f"{SVG}text")]
    boxes = [one for one in root.iter(f"{SVG}rect") if one.get("rx") == "5" and one.get("height") != "10"]
    return root, texts, boxes


def test_every_cell_and_name_is_there():
    svg = plot_perplexity(
        described(
            {"none": {"chat": (20.0, 1.0), "law": (80.0, 1.0)}, "a<b": {"chat": (1234.5, 4.0), "law": (8.25, 0.1)}}
        )
    )
    root, texts, boxes = drawn(svg)
    words = [text for text, _, _ in texts]
    for word in ("chat", "law", "all", "none", "a<b", "20.0", "80.0", "1,234", "8.25", "×0.10", "×4.00"):
        assert word in words
    assert len(boxes) == 6
    width, height = float(root.get("width")), float(root.get("height"))
    for box in boxes:
        assert float(box.get("x")) + float(box.get("width")) <= width
        assert float(box.get("y")) + float(box.get("height")) <= height


def test_lower_is_blue_higher_is_red_and_the_same_is_pale():
    svg = plot_perplexity(described({"row": {"a": (1.0, 0.25), "b": (1.0, 1.0), "c": (1.0, 4.0)}}))
    fills = [box.get("fill") for box in drawn(svg)[2]][:3]
    assert fills == ["#2166ac", "#f7f7f7", "#b2182b"]
    inks = {text: ink for text, _, ink in drawn(svg)[1]}
    assert (inks["×0.25"], inks["×1.00"]) == ("#ffffff", "#1f2328")


def test_a_change_is_shown_with_what_was_before():
    cells = {"measure": "perplexity", "before": 40.0, "after": 44.0, "change": 0.1}
    svg = plot_forgetting({"metrics": {"perplexity": {"law": {"domains": {"chat": cells}, "all": cells}}}})
    words = [text for text, _, _ in drawn(svg)[1]]
    assert "44.0" in words
    assert "40.0 before, +10.0%" in words
    assert "all" not in words


def test_there_must_be_perplexities():
    for plot in (plot_perplexity, plot_forgetting):
        with pytest.raises(DataError, match="no perplexity"):
            plot({"metrics": {}})


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=40).filter(
            lambda name: re.fullmatch(r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]+", name)
        ),
        st.floats(0.01, 1e30) | st.just(math.inf),
        min_size=1,
        max_size=8,
    )
)
def test_any_names_and_numbers_make_sound_svg(cells):
    svg = plot_perplexity(described({name: {name: (value, value) for name, value in cells.items()} for name in cells}))
    assert len(drawn(svg)[2]) == len(cells) * (len(cells) + (len(cells) > 1))
