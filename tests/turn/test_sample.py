import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from modularbase_core.errors import ConfigError
from modularbase_core.turn.sample import Sampled, Sampler, SamplingConfig, _survivors

# Eighths are exact in float32 and make ties common.
LOGITS = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=200).map(
    lambda values: np.array(values, np.float32)
)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def survivors(logits: NDArray[np.float32], **config: Any) -> dict[int, float]:
    """Normalised probabilities by id."""
    ids, weights = _survivors(logits, SamplingConfig(**config))
    return dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def ranked(logits: NDArray[np.float32]) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def drawn(logits: NDArray[np.float32], count: int, **config: Any) -> list[int]:
    sampler = Sampler(SamplingConfig(**config))
    return [sampler.sample(logits).token_id for _ in range(count)]


@given(LOGITS)
def test_greedy_takes_the_most_likely_and_of_equals_the_lowest_id(logits: NDArray[np.float32]) -> None:
    assert drawn(logits, 2, temperature=0.0, top_k=3, top_p=0.5) == ranked(logits)[:1] * 2


@given(LOGITS, st.floats(0.1, 4))
def test_temperature_divides_the_logits(logits: NDArray[np.float32], temperature: float) -> None:
    expected = softmax([float(x) / temperature for x in logits])
    got = survivors(logits, temperature=temperature)
    assert [got[i] for i in range(len(logits))] == pytest.approx(expected, rel=1e-9)


@given(LOGITS, st.integers(0, 250))
def test_top_k_keeps_exactly_the_k_most_likely(logits: NDArray[np.float32], top_k: int) -> None:
    expected = ranked(logits)[: top_k or None]
    assert set(survivors(logits, top_k=top_k)) == set(expected)


@given(LOGITS, st.floats(0, 1), st.integers(0, 60))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: NDArray[np.float32], top_p: float, top_k: int) -> None:
    kept = ranked(logits)[: top_k or None]
    shares = softmax([float(logits[i]) for i in kept])
    got = list(survivors(logits, top_p=top_p, top_k=top_k))
    assert sorted(got) == sorted(kept[: len(got)])
    assert len(got) >= 1
    assert math.fsum(shares[: len(got)]) >= top_p - 1e-9
    assert len(got) == 1 or top_p == 1 or math.fsum(shares[: len(got) - 1]) < top_p + 1e-9


def test_top_p_finds_long_runs_in_a_flat_distribution() -> None:
    logits = np.zeros(5000, np.float32)
    assert set(survivors(logits, top_p=0.5)) == set(range(2500))
    assert set(survivors(logits, top_p=0.0)) == {0}


@given(LOGITS, st.floats(0, 1), st.floats(0.3, 3))
def test_min_p_is_a_share_of_the_most_likely(logits: NDArray[np.float32], min_p: float, temperature: float) -> None:
    shares = softmax([float(x) / temperature for x in logits])
    got = survivors(logits, min_p=min_p, temperature=temperature)
    for i, share in enumerate(shares):
        if abs(share - min_p * max(shares)) > 1e-12:
            assert (i in got) == (share > min_p * max(shares))


def test_each_cut_works_on_what_the_one_before_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert set(survivors(logits, top_p=0.56)) == {0, 1}
    assert set(survivors(logits, top_k=2, top_p=0.56)) == {0}  # 0.4 of the 0.7 left is 0.571
    assert set(survivors(logits, top_p=0.95, min_p=0.2)) == {0, 1, 2, 3}
    assert set(survivors(logits, top_p=0.85, min_p=0.2)) == {0, 1, 2}
    assert set(survivors(logits, top_p=0.85, min_p=0.6)) == {0, 1}


@given(
    LOGITS,
    st.lists(st.integers(0, 10_000)),
    st.lists(st.integers(0, 10_000)),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties_follow_their_definitions(
    logits: NDArray[np.float32],
    prompt: list[int],
    answer: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    prompt, answer = [i % len(logits) for i in prompt], [i % len(logits) for i in answer]
    sampler = Sampler(
        SamplingConfig(
            temperature=0.0,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
        ),
        prompt,
    )
    for token in answer:
        sampler._remember(token)
    expected = []
    for i, logit in enumerate(logits.tolist()):
        if i in {*prompt, *answer} and repetition != 1:
            logit = logit / repetition if logit > 0 else logit * repetition
        if i in answer and (presence or frequency):
            logit -= presence + frequency * answer.count(i)
        expected.append(logit)
    before = logits.copy()
    assert sampler._penalised(logits).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert np.array_equal(logits, before)


@given(LOGITS, st.floats(1, 3), st.floats(-2, 2))
def test_greedy_takes_the_best_after_penalties(logits: NDArray[np.float32], repetition: float, presence: float) -> None:
    config = SamplingConfig(temperature=0.0, repetition_penalty=repetition, presence_penalty=presence)
    sampler = Sampler(config, range(0, len(logits), 2))
    for _ in range(3):
        expected = int(np.argmax(sampler._penalised(logits)))
        assert sampler.sample(logits).token_id == expected


def test_a_frequency_penalty_makes_greedy_go_round() -> None:
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    assert drawn(logits, 6, temperature=0.0, frequency_penalty=0.5) == [0, 1, 2, 0, 1, 2]


def test_draws_follow_the_distribution() -> None:
    logits = np.array([0.3, -1.0, 2.0, 0.0, 1.0, -np.inf], np.float32)
    count = 20_000
    shares = np.bincount(drawn(logits, count, temperature=0.7, seed=11), minlength=6) / count
    expected = softmax([float(x) / 0.7 for x in logits])
    assert shares[5] == 0
    for share, p in zip(shares, expected, strict=True):
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / count)


@given(LOGITS, st.integers(0, 2**63), st.floats(0.5, 1.5), st.integers(0, 5), st.floats(0.1, 1))
def test_the_same_seed_gives_the_same_tokens(
    logits: NDArray[np.float32], seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    config: dict[str, Any] = {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    first = drawn(logits, 8, **config)
    assert first == drawn(logits, 8, **config)
    assert set(first) <= set(survivors(logits, temperature=temperature, top_k=top_k, top_p=top_p))


def test_sequences_do_not_share_a_generator() -> None:
    logits = np.zeros(1000, np.float32)
    alone = drawn(logits, 6, seed=5)
    one, other = Sampler(SamplingConfig(seed=5)), Sampler(SamplingConfig(seed=6))
    between = []
    for _ in range(6):
        between.append(one.sample(logits).token_id)
        other.sample(logits)
    assert between == alone
    assert drawn(logits, 6) != drawn(logits, 6)


@given(LOGITS, st.integers(0, 20), st.sampled_from([0.0, 0.5]))
def test_logprobs_are_those_of_the_model(logits: NDArray[np.float32], count: int, temperature: float) -> None:
    config = SamplingConfig(logprobs=count, temperature=temperature, repetition_penalty=1.5, top_k=2, seed=0)
    sampled = Sampler(config, [0]).sample(logits)
    expected = [math.log(p) for p in softmax(logits.tolist())]
    assert sampled.logprob == pytest.approx(expected[sampled.token_id], abs=1e-9)
    assert [i for i, _ in sampled.top] == ranked(logits)[:count]
    assert [p for _, p in sampled.top] == pytest.approx([expected[i] for i in ranked(logits)[:count]], abs=1e-9)


def test_logprobs_are_not_computed_unless_asked_for() -> None:
    assert Sampler(SamplingConfig(temperature=0.0)).sample(np.array([0.0, 1.0])) == Sampled(1, None, ())


def test_forbidden_tokens_are_neither_drawn_nor_reported() -> None:
    logits = np.array([-np.inf, 1.0, -np.inf, -40.0], np.float16)
    assert set(drawn(logits, 50, temperature=2.0, top_k=3, top_p=0.999999, min_p=1e-9)) == {1}
    assert [i for i, _ in Sampler(SamplingConfig(logprobs=4)).sample(logits).top] == [1, 3]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e300])
def test_extreme_temperatures_are_safe(temperature: float) -> None:
    tokens = drawn(np.array([3.0, -5.0, 2.9], np.float32), 30, temperature=temperature, seed=1)
    assert set(tokens) == ({0} if temperature < 1 else {0, 1, 2})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_broken_logits_are_our_fault_and_no_random_token(bad: list[float], temperature: float) -> None:
    with pytest.raises(FloatingPointError, match="the logits of 2 tokens have the maximum"):
        Sampler(SamplingConfig(temperature=temperature)).sample(np.array(bad, np.float32))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; use a number from 0 up"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_k": -1}, "top_k is -1; use a whole number from 0 up"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 1.01}, "top_p is 1.01; use a number from 0 to 1"),
        ({"min_p": -1}, "min_p is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; use a number above 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3; use a number from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": "abc"}, "stop is 'abc'; use a tuple of strings"),
        ({"stop": ("a", "")}, "none of them empty"),
        ({"stop_token_ids": [1]}, r"stop_token_ids is \[1\]; use a tuple"),
        ({"stop_token_ids": (1, -1)}, "stop_token_ids is -1"),
        ({"max_tokens": 0}, "max_tokens is 0; use a whole number from 1 up"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"logprobs": -1}, "logprobs is -1"),
    ],
)
def test_values_out_of_range_are_named(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SamplingConfig(**config)


def test_a_repetition_penalty_reaches_the_last_tokens_alone() -> None:
    config = SamplingConfig(temperature=0.0, repetition_penalty=2.0)
    logits = np.array([1.0, 1.5, 0.0], np.float32)
    assert Sampler(config, [1] + [2] * 63).sample(logits).token_id == 0
    assert Sampler(config, [1] + [2] * 64).sample(logits).token_id == 1
