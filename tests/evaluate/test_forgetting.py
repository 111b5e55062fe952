"""Two evaluations are compared cell by cell, and what makes them less comparable is told."""

import copy

import pytest

from modularbase_core.errors import DataError
from modularbase_core.evaluate.forgetting import forgetting, worst


def cell(perplexity, tokens=100, size=400):
    return {"perplexity": perplexity, "bits_per_byte": perplexity / 10, "tokens": tokens, "bytes": size, "records": 5}


def share(accuracy, records=50):
    return {"accuracy": accuracy, "records": records, "stderr": 0.0, "right": int(accuracy * records)}


def row(**cells):
    return {"domains": cells, "all": next(iter(cells.values()))}


BEFORE = {
    "format": 1,
    "packs": [
        {"id": "base", "version": "1.0", "weights_sha256": "a"},
        {"id": "law", "version": "1", "weights_sha256": "l"},
    ],
    "files": [{"sha256": "f", "taken": 5}],
    "settings": {"max_tokens": 256, "temperature": None},
    "metrics": {
        "perplexity": {"none": row(chat=cell(20.0), law=cell(80.0)), "law": row(chat=cell(40.0), law=cell(10.0))},
        "routing": row(chat=share(0.9), law=share(0.8)),
        "exact": {"routed": row(maths=share(0.5))},
        "pass@k": {"routed": row(code={"pass@1": 0.1, "pass@5": 0.3, "records": 9})},
    },
}


def changed(path, value):
    out = copy.deepcopy(BEFORE)
    *folders, last = path
    inner = out
    for key in folders:
        inner = inner[key]
    inner[last] = value
    return out


def test_an_evaluation_against_itself_has_not_changed():
    found = forgetting(BEFORE, BEFORE)
    assert found["notes"] == []
    assert found["packs"] == {}
    assert set(found["metrics"]) == {"perplexity", "routing", "exact", "pass@k"}
    cells = [one for rows in found["metrics"].values() for row in rows.values() for one in row["domains"].values()]
    assert {one["change"] for one in cells} == {0.0}
    assert worst(found) is None


def test_changes_of_perplexity_are_relative_and_of_shares_are_differences():
    after = changed(["metrics", "perplexity", "law", "domains", "chat"], cell(44.0))
    after["metrics"]["exact"]["routed"]["domains"]["maths"] = share(0.4)
    after["metrics"]["pass@k"]["routed"]["domains"]["code"]["pass@1"] = 0.2
    found = forgetting(BEFORE, after)["metrics"]
    assert found["perplexity"]["law"]["domains"]["chat"] == pytest.approx(
        {"measure": "perplexity", "before": 40.0, "after": 44.0, "change": 0.1}
    )
    assert found["exact"]["routed"]["domains"]["maths"]["change"] == pytest.approx(-0.1)
    assert found["pass@k"]["routed"]["domains"]["code"] == pytest.approx(
        {"measure": "pass@1", "before": 0.1, "after": 0.2, "change": 0.1}
    )
    assert worst({"metrics": found}) == pytest.approx(("law", "chat", 0.1))
    found["perplexity"]["law"]["domains"]["chat"]["change"] = 1e-6
    assert worst({"metrics": found}) is None


def test_other_tokenizers_are_compared_by_bits_per_byte_and_other_texts_not_at_all():
    after = changed(["metrics", "perplexity", "law", "domains", "law"], cell(12.0, tokens=80))
    found = forgetting(BEFORE, after)
    assert found["metrics"]["perplexity"]["law"]["domains"]["law"] == pytest.approx(
        {"measure": "bits_per_byte", "before": 1.0, "after": 1.2, "change": 0.2}
    )
    assert found["notes"] == ["the tokenizers differ, so bits per byte are compared"]
    after = changed(["metrics", "perplexity", "law", "domains", "law"], cell(12.0, tokens=80, size=300))
    found = forgetting(BEFORE, after)
    assert "law" not in found["metrics"]["perplexity"]["law"]["domains"]
    assert found["notes"] == ["law holds other texts than before, so it is not compared"]


def test_rows_and_domains_that_only_one_has_are_left_out():
    after = changed(
        ["metrics", "perplexity"], {"law": row(law=cell(11.0), poems=cell(9.0)), "poems": row(law=cell(3.0))}
    )
    found = forgetting(BEFORE, after)["metrics"]["perplexity"]
    assert list(found) == ["law"]
    assert list(found["law"]["domains"]) == ["law"]


def test_what_differs_between_the_two_is_told():
    after = changed(["settings", "temperature"], 0.8)
    after["files"][0]["sha256"] = "g"
    after["packs"] = [
        {"id": "base", "version": "1.1", "weights_sha256": "b"},
        {"id": "new", "version": "1", "weights_sha256": "n"},
    ]
    after["metrics"]["exact"]["routed"]["domains"]["maths"] = share(0.5, records=40)
    found = forgetting(BEFORE, after)
    assert found["notes"] == [
        "the two were not evaluated on the same files",
        "temperature was None and is 0.8",
        "maths has 40 records for exact, 50 before",
    ]
    assert found["packs"] == {
        "base": {"before": "1.0", "after": "1.1"},
        "law": {"before": "1", "after": None},
        "new": {"before": None, "after": "1"},
    }


def test_two_that_have_nothing_in_common_are_an_error():
    with pytest.raises(DataError, match="no figure in common"):
        forgetting(BEFORE, changed(["metrics"], {"choice": {"routed": row(maths=share(0.5))}}))
