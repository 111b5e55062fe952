"""A router learns from messages' hidden states to bring those of one domain together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_packs import BASE, ROUTER, TOKENIZER
from tokenizers import Tokenizer

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.graph.networks import Base, Router
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import RouterArchitecture, routed_part
from modularbase_core.text.template import BEGIN, ROLES
from modularbase_core.train.checkpoints import steps_done
from modularbase_core.train.encoding import control_id
from modularbase_core.train.messages import Labelled
from modularbase_core.train.recipe import Recipe
from modularbase_core.train.router import (
    MESSAGE_TOKENS,
    TRAINED_ROWS,
    Hidden,
    fit_router,
    queries,
    understand_messages,
)

WIDTH = 4
lengths_of_messages = st.lists(st.integers(1, 3 * TRAINED_ROWS), min_size=1, max_size=6)


def numbered(lengths):
    """Messages whose rows and tokens are numbered through, so that it shows where each came from."""
    count = sum(lengths)
    rows = torch.arange(count)[:, None].expand(count, WIDTH).half()
    return Hidden(rows, torch.arange(count, dtype=torch.int32), np.cumsum([0, *lengths]))


@given(lengths_of_messages, st.data())
def test_a_batch_holds_the_whole_of_the_messages_asked_for(lengths, data):
    hidden = numbered(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(hidden))), min_size=1, max_size=6))
    rows, tokens, starts, counts = hidden.batch(chosen)
    assert rows.dtype == torch.float32
    assert tokens.dtype == starts.dtype == counts.dtype == torch.int32
    for m, start, count in zip(chosen, starts.tolist(), counts.tolist(), strict=True):
        wanted = list(range(hidden.begin[m], hidden.begin[m + 1]))
        assert tokens[start : start + count].tolist() == wanted
        assert rows[start : start + count, 0].tolist() == wanted


@given(lengths_of_messages, st.integers(0, 1000), st.data())
def test_a_sample_is_a_stretch_of_each_message_with_its_first_row_and_some_left_out(lengths, seed, data):
    hidden = numbered(lengths)
    chosen = np.array(data.draw(st.lists(st.sampled_from(range(len(hidden))), min_size=1, max_size=6)))
    rows, tokens, starts, counts = hidden.sample(chosen, np.random.default_rng(seed))
    assert len(rows) == len(tokens) == int(counts.sum())
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()[:-1]]
    assert rows[:, 0].tolist() == tokens.tolist()
    for m, start, count in zip(chosen, starts.tolist(), counts.tolist(), strict=True):
        part = tokens[start : start + count].tolist()
        assert 1 <= count <= TRAINED_ROWS
        assert part == sorted(set(part))
        assert hidden.begin[m] <= part[0]
        assert part[-1] < min(part[0] + TRAINED_ROWS, hidden.begin[m + 1])


def test_samples_differ_in_place_and_rows_and_a_seed_repeats_them():
    hidden, chosen = numbered([3 * TRAINED_ROWS]), np.array([0])

    def tokens(seed):
        return hidden.sample(chosen, np.random.default_rng(seed))[1].tolist()

    some = [tokens(seed) for seed in range(400)]
    assert some[0] == tokens(0)
    assert len({one[0] for one in some}) > 40
    assert any(len(one) < TRAINED_ROWS for one in some)
    # every row is read at some time, the last one too
    assert {token for one in some for token in one} == set(range(3 * TRAINED_ROWS))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    window = replace(BASE.window, trained_tokens=2 * MESSAGE_TOKENS)
    return Base(replace(BASE, window=window)).eval().requires_grad_(False)


def test_a_message_longer_than_the_window_is_cut_to_it(tokenizer):
    torch.manual_seed(0)
    small = Base(BASE).eval()
    room = BASE.window.trained_tokens - 2
    long = "a long message, " * 200
    ids = tokenizer.encode(long).ids
    assert room < len(ids) < MESSAGE_TOKENS * 10
    got = understand_messages(small, tokenizer, [long], quiet=True)
    assert got.tokens.tolist() == list(routed_part(ids[:room]))
    assert got.rows.isfinite().all()


TEXTS = ["hello", "写一首诗", "hello", "how do I sort a list?", "word " * 60, "word " * 700, "", "<|end|>"]


def test_messages_are_understood_each_as_the_first_of_a_conversation(base, tokenizer):
    got = understand_messages(base, tokenizer, TEXTS, quiet=True)
    assert len(got) == len(TEXTS)
    begin, user = control_id(tokenizer, BEGIN), control_id(tokenizer, ROLES["user"])
    for number, text in enumerate(TEXTS):
        ids = tokenizer.encode(text).ids[:MESSAGE_TOKENS] or [user]
        hidden = base.understand(torch.tensor([begin, user, *ids]), Windows(1))[2:]
        rows = torch.tensor(routed_part(range(len(ids))))
        first, last = got.begin[number], got.begin[number + 1]
        assert got.tokens[first:last].tolist() == list(routed_part(ids))
        assert torch.allclose(got.rows[first:last].float(), hidden[rows], atol=2e-3)
    assert got.rows.dtype == torch.float16
    assert got.tokens.dtype == torch.int32


def test_a_control_token_in_a_message_stays_text(base, tokenizer):
    got = understand_messages(base, tokenizer, ["<|end|>"], quiet=True)
    assert control_id(tokenizer, "<|end|>") not in got.tokens.tolist()


WORDS = {"python": "sort list loop function print", "garden": "rose soil plant water seed", "": "hello yes maybe go no"}


def messages_of(count, seed, domains=tuple(WORDS)):
    random = np.random.default_rng(seed)
    return [
        Labelled(" ".join(random.choice(WORDS[domain].split(), 4)), domain, f"i{number % 2}", "en")
        for number in range(count)
        for domain in domains
    ]


def recipe_of(**more):
    return Recipe(
        **{"name": "tiny", "stage": "router", "tokens": 4800, "batch_tokens": 32, "windows": ((1.0, 32),), **more}
    )


def understood(base, tokenizer, messages):
    return understand_messages(base, tokenizer, [one.text for one in messages], quiet=True)


@pytest.mark.parametrize(
    "architecture", [ROUTER, RouterArchitecture(base_hidden_size=64, width=32, key_size=16)], ids=["lexicon", "hidden"]
)
def test_messages_of_a_domain_come_together_and_domains_apart(base, tokenizer, architecture):
    train, test = messages_of(60, 0), messages_of(20, 1)
    recipe, chance = recipe_of(), np.full(len(train), 1 / len(train))
    router = fit_router(recipe, architecture, understood(base, tokenizer, train), train, chance, quiet=True)
    assert not router.training
    got = queries(router, understood(base, tokenizer, test))
    assert got.shape == (len(test), architecture.key_size)
    assert got.dtype == np.float32
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(len(test)), abs=1e-4)
    same = np.array([[one.domain == other.domain for other in test] for one in test])
    near = got @ got.T
    assert near[same].mean() > near[~same].mean() + 0.5


def test_a_seed_repeats_a_fit(base, tokenizer):
    train = messages_of(10, 0)
    hidden, chance = understood(base, tokenizer, train), np.full(len(train), 1 / len(train))

    def fit(seed):
        recipe = recipe_of(tokens=640, seed=seed)
        return queries(fit_router(recipe, ROUTER, hidden, train, chance, quiet=True), hidden)

    assert np.array_equal(fit(1), fit(1))
    assert not np.array_equal(fit(1), fit(2))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_a_fit_of_few_steps_is_a_fit(base, tokenizer, steps):
    train = messages_of(4, 0)
    hidden, chance = understood(base, tokenizer, train), np.full(len(train), 1 / len(train))
    router = fit_router(recipe_of(tokens=32 * steps), ROUTER, hidden, train, chance, quiet=True)
    assert np.isfinite(queries(router, hidden)).all()


def test_a_fit_that_was_interrupted_ends_with_the_same_bits(base, tokenizer, tmp_path, monkeypatch):
    train = messages_of(10, 0)
    hidden, chance = understood(base, tokenizer, train), np.full(len(train), 1 / len(train))
    recipe, path, sample = recipe_of(tokens=32 * 20), tmp_path / "r/checkpoint.pt", Hidden.sample
    whole = fit_router(recipe, ROUTER, hidden, train, chance, quiet=True)
    count = 0

    def interrupted(self, chosen, random):
        nonlocal count
        count += 1
        if count == 13:
            raise KeyboardInterrupt
        return sample(self, chosen, random)

    with monkeypatch.context() as patch:
        patch.setattr(Hidden, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit_router(recipe, ROUTER, hidden, train, chance, path, quiet=True, save_seconds=0.0)
    assert torch.load(path, weights_only=True)["step"] == 12
    again = fit_router(recipe, ROUTER, hidden, train, chance, path, quiet=True)
    assert steps_done(path) == 20
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "messages", "error", "told"),
    [
        ({"other_rate": 0.01}, 10, ConfigError, r"checkpoint\.pt was begun with other_rate = 0\.003, but the recipe"),
        ({}, 1, DataError, r"checkpoint\.pt was trained on other messages; remove it"),
    ],
)
def test_the_fit_of_another_recipe_is_not_gone_on_with(base, tokenizer, tmp_path, change, messages, error, told):
    path = tmp_path / "checkpoint.pt"
    for recipe, count in ((recipe_of(tokens=64), 10), (recipe_of(tokens=64, **change), messages)):
        train = messages_of(count, 0)
        hidden, chance = understood(base, tokenizer, train), np.full(len(train), 1 / len(train))
        if path.exists():
            with pytest.raises(error, match=told):
                fit_router(recipe, ROUTER, hidden, train, chance, path, quiet=True)
        else:
            fit_router(recipe, ROUTER, hidden, train, chance, path, quiet=True)


def test_messages_are_drawn_by_their_chance(base, tokenizer, monkeypatch):
    train = messages_of(10, 0)
    hidden, drawn, sample = understood(base, tokenizer, train), [], Hidden.sample

    def record(self, chosen, random):
        drawn.extend(chosen.tolist())
        return sample(self, chosen, random)

    monkeypatch.setattr(Hidden, "sample", record)
    chance = np.array([0.0, 3.0, 1.0] * 10)  # not yet adding up to one
    fit_router(recipe_of(tokens=960), ROUTER, hidden, train, chance, quiet=True)
    counts = np.bincount(np.array(drawn) % 3, minlength=3)
    assert counts.sum() == 960
    assert counts[0] == 0
    assert counts[1] / counts[2] == pytest.approx(3, rel=0.3)


def test_queries_do_not_depend_on_the_batch(base, tokenizer):
    torch.manual_seed(0)
    router, messages = Router(ROUTER).eval(), messages_of(100, 0)
    hidden = understood(base, tokenizer, messages)
    got = queries(router, hidden)
    alone = queries(router, understood(base, tokenizer, messages[-1:]))
    assert got[-1] == pytest.approx(alone[0], abs=1e-5)
