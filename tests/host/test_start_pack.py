"""A pack that is being written gets weights to begin with, routing keys and digests, or stays as it was."""

import json
from dataclasses import replace

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import read_routing
from modularbase_core.errors import ManifestError, PackError, WeightsError
from modularbase_core.host import build, start_pack
from modularbase_core.host.start_pack import start_pack as start
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk import Manifest
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import WEIGHTS_FILE, weights_name
from modularbase_core.sdk.testing import check_pack
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed, Token

PROMPTS = [f"a question about gardens, number {number}" for number in range(12)]
DRAFT = {
    "id": "gardens",
    "name": "园艺 🌱",
    "version": "0.1.0",
    "base": "tiny-base",
    "base_compatibility": ["1.0"],
    "languages": ["en"],
    "licence": "MIT",
    "fallback": ["general_chat"],
}


@pytest.fixture
def draft(tmp_path):
    """A pack's directory as the template renders it."""
    write_draft(tmp_path, DRAFT)
    return tmp_path


def write_draft(directory, said):
    (directory / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    write_examples(directory, PROMPTS)


def write_examples(directory, prompts):
    (directory / "examples.json").write_text(json.dumps([{"prompt": prompt} for prompt in prompts]))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def catalog(tiny_packs):
    return catalog_of(tiny_packs)


@pytest.fixture
def config(cache):
    return EngineConfig(cache_dir=cache, hot_tokens=1024)


def test_it_begins_with_general_chats_weights_and_keys_of_its_examples(draft, catalog, config, tiny_packs):
    made = start(draft, catalog, config)
    assert check_pack(draft) == made
    assert {key: value for key, value in made.to_dict().items() if key in DRAFT} == DRAFT
    assert made.architecture == PACK
    assert made.files[WEIGHTS_FILE] == file_sha256(tiny_packs["general_chat"] / WEIGHTS_FILE)
    routing = read_routing(draft / "routing.safetensors", 16)
    base, router = (catalog.find(name).manifest for name in ("tiny-base", "tiny-router"))
    assert routing.made_with == weights_name(base, router)
    assert len(routing.keys) == len(PROMPTS) // 4


def test_it_answers_as_general_chat_does(draft, catalog, config, tiny_packs):
    start(draft, catalog, config)
    together = catalog_of({**tiny_packs, "gardens": draft})

    def answer(pack_id):
        question, greedy = [Message("user", PROMPTS[0])], SamplingConfig(temperature=0.0, max_tokens=8)
        with build(config, catalog=together) as host:
            routed, *events = host.chat(question, greedy, packs=[pack_id])
        assert isinstance(routed, Routed)
        assert [one.id for one in routed.packs] == [pack_id]
        assert isinstance(events[-1], Finished)
        return [event.token_id for event in events if isinstance(event, Token)]

    assert answer("gardens") == answer("general_chat")


def test_keys_are_made_again_and_its_own_weights_kept(draft, catalog, config, tmp_path_factory):
    start(draft, catalog, config)
    trained = write_pack(tmp_path_factory.mktemp("trained"), manifest("gardens", "domain", PACK), seed=9) / WEIGHTS_FILE
    weights, keys = trained.read_bytes(), (draft / "routing.safetensors").read_bytes()
    (draft / WEIGHTS_FILE).write_bytes(weights)
    write_examples(draft, ["what is a spade?", "when do I sow peas?"])
    made = start(draft, catalog, config)
    assert (draft / WEIGHTS_FILE).read_bytes() == weights
    assert (draft / "routing.safetensors").read_bytes() != keys
    assert check_pack(draft) == made


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"base": "other"}, PackError, "no pack 'other' is installed"),
        (
            {"base_compatibility": ["2.0"]},
            PackError,
            "pack 'gardens' was made for tiny-base 2.0, but 1.0.0 is installed",
        ),
        ({"base": "python_code"}, PackError, "is a domain pack, not a base"),
        ({"version": "one"}, ManifestError, "version is 'one'"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused_and_left_as_it_was(draft, catalog, config, change, error, told):
    write_draft(draft, {**DRAFT, **change})
    before = contents(draft)
    with pytest.raises(error, match=told):
        start(draft, catalog, config)
    assert contents(draft) == before


def test_without_a_base_it_says_what_to_install(draft, config):
    with pytest.raises(PackError, match="no base is installed; run `pip install modularbase-nano`"):
        start(draft, Catalog(), config)


def test_without_examples_it_says_so(draft, catalog, config):
    (draft / "examples.json").unlink()
    with pytest.raises(ManifestError, match=r"examples\.json is missing"):
        start(draft, catalog, config)


def test_weights_of_no_network_are_refused(draft, catalog, config):
    (draft / WEIGHTS_FILE).write_bytes(b"of something")
    with pytest.raises(ManifestError, match="describes no network; remove the weights to begin with general chat's"):
        start(draft, catalog, config)


def test_a_router_without_background_makes_no_keys(draft, tiny_packs, tmp_path_factory, config):
    bare = tmp_path_factory.mktemp("router")
    (bare / WEIGHTS_FILE).write_bytes((tiny_packs["tiny-router"] / WEIGHTS_FILE).read_bytes())
    said = Manifest.read(tiny_packs["tiny-router"] / "manifest.json")
    files = {WEIGHTS_FILE: said.files[WEIGHTS_FILE]}
    (bare / "manifest.json").write_text(json.dumps(replace(said, files=files).to_dict()))
    before = contents(draft)
    with pytest.raises(WeightsError, match="router 'tiny-router' brings no background"):
        start(draft, catalog_of({**tiny_packs, "tiny-router": bare}), config)
    assert contents(draft) == before


def test_an_interruption_at_the_last_moment_leaves_the_draft(draft, catalog, config, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    before = contents(draft)
    with monkeypatch.context() as patch:
        patch.setattr(start_pack, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(draft, catalog, config)
    assert contents(draft) == before
    start(draft, catalog, config)
    check_pack(draft)
