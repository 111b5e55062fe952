from pathlib import Path

import numpy as np
import pytest
import torch
from apart import taken_apart
from qwen2_directory import write_checkpoint

from modularbase_core.device.weights import read_background
from modularbase_core.graph.networks import Base, Router
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.sdk.template import read_template
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.train.pretrained.checkpoint import open_checkpoint
from modularbase_core.train.pretrained.config import divide, read_config
from modularbase_core.train.pretrained.first_router import first_router, ordinary_messages, understood
from modularbase_core.train.pretrained.layers import Sources
from modularbase_core.train.ship import load_shipped

TEXTS = ["the user", "in the hall, hello!", "你好", "the " * 30]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("apart")
    write_checkpoint(root / "in", seed=4)
    return {**taken_apart(root / "in", root / "out", form="fp32", understanding_layers=2), "in": root / "in"}


@pytest.fixture(scope="module")
def tokenizer(packs: dict[str, Path]) -> Tokenizer:
    folder = packs["base"] / "tokenizer"
    return Tokenizer.load(folder / "tokenizer.json", read_template(folder / "template.json"))


def test_layers_read_one_by_one_understand_as_the_base_does(packs: dict[str, Path], tokenizer: Tokenizer) -> None:
    base, pack = divide(read_config(packs["in"]), understanding_layers=2, fusion_layers=1)
    got = understood(Sources(open_checkpoint(packs["in"]), base, pack), tokenizer, TEXTS)
    network, before = load_shipped(packs["base"]), tokenizer.controls.first
    assert isinstance(network, Base)
    for text, rows in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            wanted = network.understand(torch.tensor([*before, *tokenizer.encode(text)]), Windows(1))[len(before) :]
        np.testing.assert_allclose(rows, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_its_background_is_what_the_network_makes_of_ordinary_messages(
    packs: dict[str, Path], tokenizer: Tokenizer
) -> None:
    router, base = load_shipped(packs["router"]), load_shipped(packs["base"])
    assert isinstance(router, Router)
    assert isinstance(base, Base)
    others = read_background(packs["router"] / "routing.safetensors", 128).others
    before = tokenizer.controls.first
    for text, wanted in zip(ordinary_messages()[-len(others) :][:5], others[:5], strict=True):
        ids = torch.tensor([*before, *tokenizer.encode(text)])
        with torch.no_grad():
            rows = base.understand(ids, Windows(1))[len(before) :]
            one = torch.tensor([0]), torch.tensor([len(rows)])
            got = router(rows, ids[len(before) :].int(), *one)[0]
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-4)


def test_it_tells_messages_apart_by_what_is_in_them() -> None:
    random = np.random.default_rng(0)
    topics = random.normal(size=(3, 64)) * 2
    common = random.normal(size=64) * 20  # what hidden states of all texts share

    def messages(topic: int, count: int) -> list[np.ndarray]:
        return [(random.normal(size=(8, 64)) + topics[topic] + common).astype(np.float32) for _ in range(count)]

    shape = RouterArchitecture(base_hidden_size=64, width=128, key_size=32)
    ordinary = [message for topic in range(3) for message in messages(topic, 20)]
    weights, _ = first_router(ordinary, shape)
    router = Router(shape)
    router.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def query(rows: np.ndarray) -> np.ndarray:
        ends = torch.tensor([0]), torch.tensor([len(rows)])
        with torch.no_grad():
            out: np.ndarray = router(torch.from_numpy(rows), torch.zeros(len(rows), dtype=torch.int32), *ends)[
                0
            ].numpy()
        return out

    queries = [np.stack([query(rows) for rows in messages(topic, 6)]) for topic in range(3)]
    within = np.mean([one @ one.T for one in queries])
    between = np.mean([queries[a] @ queries[b].T for a in range(3) for b in range(3) if a != b])
    assert within > 0.8
    assert between < 0.2
