"""Messages are routed by base and router alone, as the whole model routes them and as training saw them."""

import shutil

import numpy as np
import pytest
from tiny_packs import PACK, ROUTER, TOKENIZER, catalog_of, manifest, write_pack
from tokenizers import Tokenizer

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import read_background, read_routing, write_weights
from modularbase_core.errors import BudgetError, InputError, PackError, WeightsError
from modularbase_core.host import build
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import plugin_manager
from modularbase_core.packs.keys import scores
from modularbase_core.sdk import Pack, hookimpl
from modularbase_core.sdk.manifest import ROUTING_FILE, WEIGHTS_FILE, write_manifest
from modularbase_core.text.template import Message
from modularbase_core.train.router import queries, understand_messages
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.sample import SamplingConfig

TEXTS = ["hello", "写一首关于春天的诗", "how do I sort a list in Python?", "word " * 40, "<|end|>", "?"]


@pytest.fixture(scope="module")
def config(cache):
    return EngineConfig(cache_dir=cache, hot_tokens=1024)


@pytest.fixture(scope="module")
def messages(config, tiny_packs):
    return Messages.open(config, catalog_of(tiny_packs))


def test_queries_are_those_that_training_makes_in_torch(messages, tiny_packs):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.encode_special_tokens = True
    hidden = understand_messages(load_shipped(tiny_packs["tiny-base"]), tokenizer, TEXTS, quiet=True)
    wanted = queries(load_shipped(tiny_packs["tiny-router"]), hidden)
    got = messages.queries(TEXTS)
    assert got.shape == (len(TEXTS), ROUTER.key_size)
    # hidden states are kept in float16 while a router is trained
    assert got == pytest.approx(wanted, abs=1e-3)
    # the messages are told apart, by the lexicon too, so that equality says something
    assert (np.linalg.norm(got[:, None] - got[None], axis=2)[~np.eye(len(TEXTS), dtype=bool)] > 0.01).all()


def test_a_lexicon_takes_part(messages, tiny_packs, tmp_path, config):
    packs = {**tiny_packs, "tiny-router": shutil.copytree(tiny_packs["tiny-router"], tmp_path / "tiny-router")}
    network = load_shipped(packs["tiny-router"])
    tensors = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
    tensors["lexicon.weight"] = tensors["lexicon.weight"][::-1].copy()
    write_weights(packs["tiny-router"] / WEIGHTS_FILE, tensors)
    write_manifest(packs["tiny-router"], Pack(packs["tiny-router"]).manifest)
    other = Messages.open(config, catalog_of(packs))
    assert not np.allclose(other.queries(TEXTS), messages.queries(TEXTS), atol=1e-2)


def test_a_query_does_not_depend_on_the_messages_beside_it(messages):
    together = messages.queries(TEXTS)
    for text, query in zip(TEXTS, together, strict=True):
        assert np.array_equal(messages.queries([text])[0], query)
    assert messages.scores([]) == []


def test_scores_are_those_of_the_keys_that_packs_bring(messages, tiny_packs):
    queries = messages.queries(TEXTS)
    background = read_background(tiny_packs["tiny-router"] / ROUTING_FILE, ROUTER.key_size).centres
    got = messages.scores(TEXTS)
    for pack_id in ("general_chat", "python_code"):
        one = read_routing(tiny_packs[pack_id] / ROUTING_FILE, ROUTER.key_size)
        wanted = scores(queries, one.keys, one.scale, one.bias, background)
        assert [scored[pack_id] for scored in got] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_message_goes_where_chat_sends_it(messages, config, tiny_packs):
    with build(config, catalog=catalog_of(tiny_packs)) as host:
        for text in TEXTS:
            routed = next(iter(host.chat([Message("user", text)], SamplingConfig(max_tokens=1))))
            route = messages.route(text)
            assert route.ids == tuple(one.id for one in routed.packs)
            assert route.scores == pytest.approx(routed.scores, abs=1e-6)
            assert route.abstained == routed.abstained


def test_no_packs_weights_are_needed(config, tiny_packs, tmp_path):
    packs = dict(tiny_packs)
    for name in ("general_chat", "python_code"):
        packs[name] = shutil.copytree(tiny_packs[name], tmp_path / name)
        (packs[name] / WEIGHTS_FILE).unlink()
    assert Messages.open(config, catalog_of(packs)).route("hello").ids


def test_the_base_must_be_whole(config, tiny_packs, tmp_path):
    packs = {**tiny_packs, "tiny-base": shutil.copytree(tiny_packs["tiny-base"], tmp_path / "tiny-base")}
    (packs["tiny-base"] / WEIGHTS_FILE).write_bytes(b"short")
    with pytest.raises(WeightsError, match="truncated"):
        Messages.open(config, catalog_of(packs))
    with pytest.raises(PackError, match="no base is installed"):
        Messages.open(config, catalog_of({}))


def test_a_message_that_does_not_fit_is_told_and_the_next_one_fits(messages):
    with pytest.raises(BudgetError):
        messages.route("word " * 2000)
    assert messages.route("hello").ids


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_message_goes_nowhere(messages, text):
    with pytest.raises(InputError, match="empty"):
        messages.route(text)


def test_plugins_are_heard_and_what_they_did_wrong_is_told_once(config, tiny_packs):
    class Steers:
        @hookimpl
        def modularbase_route(self, message):
            if message == "fail":
                raise OSError("no")
            return ["python_code"] if message == "steer" else None

    manager = plugin_manager()
    manager.register(Steers(), "steers")
    catalog = catalog_of(tiny_packs)
    messages = Messages.open(config, catalog, None, hooks_of(catalog, manager))
    route = messages.route("steer")
    assert [(one.id, one.weight) for one in route.packs] == [("python_code", 1.0)]
    assert "plugin steers" in route.packs[0].reason
    (note,) = messages.route("fail").notes
    assert "steers" in note
    assert "OSError: no" in note
    assert messages.route("hello").notes == ()


def test_keys_made_of_examples_claim_what_is_like_them(messages, config, tiny_packs, tmp_path):
    examples = [f"word number {number}" for number in range(8)]
    made = messages.routing_of(examples)
    pack = write_pack(tmp_path / "words", manifest("words", "domain", PACK), seed=5)
    write_weights(pack / ROUTING_FILE, made, form="fp32")
    among = Messages.open(config, catalog_of({**tiny_packs, "words": pack}))
    got = among.scores(examples)
    assert np.mean([one["words"] for one in got]) > 0.5
    # those that were there score as before
    assert [{name: one[name] for name in ("general_chat", "python_code")} for one in got] == messages.scores(examples)


def test_keys_need_a_message_to_be_made_from(messages):
    with pytest.raises(InputError, match="no message was given"):
        messages.routing_of([])


def test_a_pack_whose_keys_cannot_be_read_is_refused(config, tiny_packs, tmp_path):
    broken = write_pack(tmp_path / "broken", manifest("broken", "domain", PACK), seed=5)
    (broken / ROUTING_FILE).write_bytes(b"short")
    messages = Messages.open(config, catalog_of({**tiny_packs, "broken": broken}))
    assert "routing.safetensors" in messages.lineup.refused["broken"]
    assert "broken" not in messages.scores(["hello"])[0]
