"""What newcomers take from packs that are there: told by routing their examples without and with them."""

import json
import shutil

import numpy as np
import pytest
from tiny_packs import PACK, ROUTER, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import write_weights
from modularbase_core.errors import PackError
from modularbase_core.host.takeover import Taken, Takeover, takeover
from modularbase_core.sdk.manifest import ROUTING_FILE, WEIGHTS_FILE


@pytest.fixture
def config(cache):
    return EngineConfig(cache_dir=cache, hot_tokens=1024)


@pytest.fixture
def packs(tiny_packs, tmp_path):
    """Copies of the tiny packs: Python claims every message, general chat none but what is left."""
    copies = {id: shutil.copytree(directory, tmp_path / id) for id, directory in tiny_packs.items()}
    claim(copies["general_chat"], 0.1)
    claim(copies["python_code"], 0.7)
    write_examples(copies["general_chat"], ["hello", "good evening"])
    write_examples(copies["python_code"], ["sort a list", "what is a tuple?", "loops"])
    return copies


@pytest.fixture
def newcomer(tmp_path):
    """Write a pack `law` that gives every message the same score."""

    def write(score, id="law"):
        directory = write_pack(tmp_path / id, manifest(id, "domain", PACK), seed=9)
        claim(directory, score)
        write_examples(directory, ["my lease", "is this a contract?"])
        return directory

    return write


def claim(directory, score):
    """Give a pack keys that score every message about the same."""
    one, bias = np.full(1, 1e-6, np.float32), np.full(1, np.log(score / (1 - score)), np.float32)
    keys = np.eye(1, ROUTER.key_size, dtype=np.float32)
    write_weights(directory / ROUTING_FILE, {"keys": keys, "scale": one, "bias": bias}, form="fp32")


def write_examples(directory, prompts):
    (directory / "examples.json").write_text(json.dumps([{"prompt": prompt} for prompt in prompts]))


def rows_of(packs, new, config):
    got = takeover(catalog_of(packs), catalog_of({**packs, **new}), config)
    assert got.newcomers == tuple(new)
    return {row.pack_id: row for row in got.rows}


def test_a_pack_that_claims_more_takes_the_examples_of_others(packs, newcomer, config):
    rows = rows_of(packs, {"law": newcomer(0.9)}, config)
    assert rows == {
        "general_chat": Taken("general_chat", 2, before=0, after=0, to_newcomers=2),
        "python_code": Taken("python_code", 3, before=3, after=0, to_newcomers=3),
        "law": Taken("law", 2, before=0, after=2, to_newcomers=0),
    }


def test_a_pack_that_claims_less_takes_nothing(packs, newcomer, config):
    rows = rows_of(packs, {"law": newcomer(0.6)}, config)
    assert rows["python_code"] == Taken("python_code", 3, before=3, after=3, to_newcomers=0)
    assert rows["law"] == Taken("law", 2, before=0, after=0, to_newcomers=0)


def test_beside_others_a_newcomer_answers_too_and_takes_nobody_out(packs, newcomer, config, cache):
    two = EngineConfig(cache_dir=cache, hot_tokens=1024, packs_per_turn=2)
    rows = rows_of(packs, {"law": newcomer(0.9)}, two)
    assert rows["python_code"] == Taken("python_code", 3, before=3, after=3, to_newcomers=3)


def test_what_reaches_no_threshold_stays_with_general_chat(packs, newcomer, cache):
    strict = EngineConfig(cache_dir=cache, hot_tokens=1024, threshold=0.95)
    rows = rows_of(packs, {"law": newcomer(0.9)}, strict)
    assert rows["general_chat"] == Taken("general_chat", 2, before=2, after=2, to_newcomers=0)
    assert rows["python_code"] == Taken("python_code", 3, before=0, after=0, to_newcomers=0)


def test_several_newcomers_count_together(packs, newcomer, config):
    new = {"law": newcomer(0.9), "tax": newcomer(0.8, "tax")}
    rows = rows_of(packs, new, config)
    assert rows["python_code"].to_newcomers == 3
    # what one newcomer takes from another was never anybody's
    assert rows["tax"] == Taken("tax", 2, before=0, after=0, to_newcomers=0)


def test_packs_without_sound_examples_or_weights_are_no_hindrance(packs, newcomer, config):
    (packs["python_code"] / "examples.json").unlink()
    (packs["general_chat"] / "examples.json").write_text("no JSON")
    new = newcomer(0.9)
    for directory in (*packs.values(), new):
        if directory.name not in ("tiny-base", "tiny-router"):
            (directory / WEIGHTS_FILE).unlink()
    assert rows_of(packs, {"law": new}, config).keys() == {"law"}


def test_a_newcomer_that_is_refused_is_none(packs, config, tmp_path):
    foreign = write_pack(tmp_path / "foreign", manifest("foreign", "domain", PACK, base="other-base"))
    got = takeover(catalog_of(packs), catalog_of({**packs, "foreign": foreign}), config)
    assert got.newcomers == ()
    assert {row.pack_id for row in got.rows} == {"general_chat", "python_code"}
    assert all(row.before == row.after and not row.to_newcomers for row in got.rows)


def test_where_nothing_can_run_it_says_so(config):
    with pytest.raises(PackError, match="no base is installed"):
        takeover(catalog_of({}), catalog_of({}), config)


def test_it_is_laid_out_as_a_table_and_as_plain_values():
    rows = (Taken("general_chat", 24, 20, 8, 12), Taken("law", 2, 0, 2, 0))
    got = Takeover(("law", "tax"), rows)
    assert str(got).splitlines() == [
        "pack          examples  answered before  after  now by law, tax",
        "general_chat        24               20      8               12",
        "law                  2                0      2                0",
    ]
    assert json.loads(json.dumps(got.to_dict())) == {
        "newcomers": ["law", "tax"],
        "packs": [
            {"pack_id": "general_chat", "examples": 24, "before": 20, "after": 8, "to_newcomers": 12},
            {"pack_id": "law", "examples": 2, "before": 0, "after": 2, "to_newcomers": 0},
        ],
    }
