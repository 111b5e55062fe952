"""Routing keys are taken as packs bring them, or made again from examples and kept, and one bad file stops no other."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_packs import PACK, ROUTER, catalog_of, manifest, write_pack

from modularbase_core.device.weights import read_routing, write_weights
from modularbase_core.errors import BudgetError, WeightsError
from modularbase_core.host.keys import background_of, made_with, read_keys, routing_of
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import ROUTING_FILE, WEIGHTS_FILE, write_manifest

PROMPTS = [f"a question about gardens, number {number}" for number in range(9)]


class FakeQueries:
    """Each text has a query of its own, the same every time; texts that hold `too long` fit nowhere."""

    def __init__(self):
        self.asked = []

    def of_texts(self, texts):
        self.asked.append(list(texts))
        if any("too long" in text for text in texts):
            raise BudgetError("the message does not fit")
        seeds = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts)
        rows = np.array([np.random.default_rng(seed).normal(size=ROUTER.key_size) for seed in seeds], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def packs(tiny_packs, tmp_path):
    """Copies of the tiny packs and a pack `gardens` with examples; to be written to."""
    copies = {id: shutil.copytree(directory, tmp_path / id) for id, directory in tiny_packs.items()}
    copies["gardens"] = write_pack(tmp_path / "gardens", manifest("gardens", "domain", PACK), seed=7)
    write_examples(copies["gardens"], PROMPTS)
    return copies


@pytest.fixture
def queries():
    return FakeQueries()


@pytest.fixture
def read(packs, queries, tmp_path):
    """Read the keys of the packs as they are at that moment."""
    return lambda cache=tmp_path / "cache": read_keys(line_up(catalog_of(packs)), queries, cache)


def write_examples(directory, prompts):
    (directory / "examples.json").write_text(json.dumps([{"prompt": prompt} for prompt in prompts]))


def write_keys(directory, made_for, size=ROUTER.key_size):
    keys = np.eye(2, size, dtype=np.float32)
    values = {"keys": keys, "scale": np.full(1, 8, np.float32), "bias": np.full(1, -4, np.float32)}
    write_weights(directory / ROUTING_FILE, values, form="fp32", metadata={"made_with": made_for})


def cached(tmp_path):
    return sorted((tmp_path / "cache/routing").iterdir())


def same(one, other):
    return np.array_equal(one.keys, other.keys) and (one.scale, one.bias) == (other.scale, other.bias)


def test_keys_are_named_by_the_weights_of_base_and_router(packs):
    before = made_with(line_up(catalog_of(packs)))
    digests = [Pack(packs[name]).manifest.files[WEIGHTS_FILE] for name in ("tiny-base", "tiny-router")]
    assert before == "-".join(digest[:16] for digest in digests)
    write_pack(packs["tiny-router"], replace(Pack(packs["tiny-router"]).manifest, files={}), seed=99)
    assert made_with(line_up(catalog_of(packs))) != before


@pytest.mark.parametrize("says", [True, False])
def test_keys_that_were_made_here_or_do_not_say_where_are_taken_as_they_are(read, packs, queries, says):
    write_keys(packs["gardens"], made_with(line_up(catalog_of(packs))) if says else "")
    got = read()
    assert same(got.routing["gardens"], read_routing(packs["gardens"] / ROUTING_FILE, ROUTER.key_size))
    assert got.routing.keys() == {"general_chat", "python_code", "gardens"}
    assert (got.remade, got.refused, queries.asked) == ([], {}, [])


@pytest.mark.parametrize("bring", ["none", "others", "another size"])
def test_keys_are_made_of_examples_where_there_are_none_or_of_other_weights(read, packs, queries, bring):
    if bring == "none":
        (packs["gardens"] / ROUTING_FILE).unlink()
    else:
        write_keys(packs["gardens"], "0123-4567", ROUTER.key_size if bring == "others" else 8)
    got = read()
    lineup = line_up(catalog_of(packs))
    wanted = routing_of(PROMPTS, lineup, queries)
    routing = got.routing["gardens"]
    assert np.array_equal(routing.keys, wanted["keys"])
    assert (routing.scale, routing.bias) == (float(wanted["scale"][0]), float(wanted["bias"][0]))
    assert routing.made_with == made_with(lineup)
    assert (got.remade, got.refused) == (["gardens"], {})
    assert queries.asked[0] == PROMPTS


def test_keys_once_made_are_kept_and_read_again(read, packs, queries, tmp_path):
    (packs["gardens"] / ROUTING_FILE).unlink()
    first = read().routing["gardens"]
    second = read()
    assert len(queries.asked) == 1
    assert same(second.routing["gardens"], first)
    assert second.routing["gardens"].made_with == first.made_with
    assert second.remade == ["gardens"]
    assert len(cached(tmp_path)) == 1
    assert not (packs["gardens"] / ROUTING_FILE).exists()


def test_other_examples_other_weights_or_another_background_make_other_keys(read, packs, queries, tmp_path):
    (packs["gardens"] / ROUTING_FILE).unlink()
    read()
    write_examples(packs["gardens"], PROMPTS[:-1])
    read()
    write_examples(packs["gardens"], ["\n".join(PROMPTS[:2]), *PROMPTS[2:]])  # the same text, other messages
    read()
    rows = np.eye(4, ROUTER.key_size, dtype=np.float32)
    write_weights(packs["tiny-router"] / ROUTING_FILE, {"background": rows, "others": rows}, form="fp32")
    write_manifest(packs["tiny-router"], Pack(packs["tiny-router"]).manifest)
    read()
    write_pack(packs["tiny-router"], replace(Pack(packs["tiny-router"]).manifest, files={}), seed=99)
    read()
    assert len(queries.asked) == len(cached(tmp_path)) == 5


def test_kept_keys_that_are_not_whole_are_made_again(read, packs, queries, tmp_path):
    (packs["gardens"] / ROUTING_FILE).unlink()
    first = read().routing["gardens"]
    (file,) = cached(tmp_path)
    file.write_bytes(file.read_bytes()[:-10])
    assert same(read().routing["gardens"], first)
    assert len(queries.asked) == 2
    read()
    assert len(queries.asked) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(read, packs, queries, tmp_path):
    (packs["gardens"] / ROUTING_FILE).unlink()
    (tmp_path / "file").write_text("")
    for times in (1, 2):
        got = read(tmp_path / "file" / "cache")
        assert "gardens" in got.routing
        assert got.refused == {}
        assert len(queries.asked) == times


def test_keys_of_other_weights_are_kept_where_there_are_no_examples(read, packs, queries):
    write_keys(packs["gardens"], "0123-4567")
    (packs["gardens"] / "examples.json").unlink()
    got = read()
    assert got.routing["gardens"].made_with == "0123-4567"
    assert (got.remade, got.refused, queries.asked) == ([], {}, [])


def test_a_pack_with_neither_keys_nor_examples_is_only_answered_by_name(read, packs):
    (packs["gardens"] / ROUTING_FILE).unlink()
    (packs["gardens"] / "examples.json").unlink()
    got = read()
    assert "gardens" not in got.routing
    assert got.refused == {}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda pack: (pack / ROUTING_FILE).write_bytes(b"short"), "routing.safetensors"),
        (lambda pack: write_keys(pack, "", size=8), "'keys' has shape [2, 8], expected [any, 16]"),
        (lambda pack: [(pack / ROUTING_FILE).unlink(), write_examples(pack, [""])], "examples.json: example 1"),
        (lambda pack: [(pack / ROUTING_FILE).unlink(), write_examples(pack, [])], "holds no example"),
        (lambda pack: [(pack / ROUTING_FILE).unlink(), write_examples(pack, ["too long"])], "does not fit"),
    ],
)
def test_a_pack_whose_keys_cannot_be_had_is_refused_and_stops_no_other(read, packs, tmp_path, harm, told):
    harm(packs["gardens"])
    got = read()
    assert got.refused.keys() == {"gardens"}
    assert told in got.refused["gardens"]
    assert got.routing.keys() == {"general_chat", "python_code"}
    assert not (tmp_path / "cache").exists()


def test_general_chat_must_have_whole_keys(read, packs):
    (packs["general_chat"] / ROUTING_FILE).write_bytes(b"short")
    with pytest.raises(WeightsError, match="general_chat"):
        read()


def test_a_router_without_a_background_can_make_no_keys(read, packs, queries):
    (packs["tiny-router"] / ROUTING_FILE).unlink()
    assert background_of(line_up(catalog_of(packs))).centres.shape == (0, ROUTER.key_size)
    (packs["gardens"] / ROUTING_FILE).unlink()
    got = read()
    told = "router 'tiny-router' brings no background, so no keys can be made; upgrade it"
    assert got.refused == {"gardens": told}
    assert got.routing.keys() == {"general_chat", "python_code"}
    assert queries.asked == []
