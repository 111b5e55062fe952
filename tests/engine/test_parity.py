"""The shipped weights: compiled engine against eager torch, greedy, prompt by prompt.

Continuations are identical, or first differ where eager's two best tokens lie closer than four times the
error of that row's logits; at most two prompts may differ. A few prompts by default, 200 with `-m slow`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from eager import EXACT
from feeding import fed
from growing import EagerModel

from modularbase_core.config import EngineConfig
from modularbase_core.host import Host, build
from modularbase_core.packs.catalog import discover
from modularbase_core.text.template import Message, render
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence

THINGS = (
    ("a list", "列表"), ("a library", "图书馆"), ("the moon", "月亮"), ("rain", "下雨"), ("a dictionary", "字典"),
    ("the sea", "大海"), ("a recursive function", "递归函数"), ("tea", "茶"),
    ("music", "音乐"), ("an exception", "异常"),
)  # fmt: skip
FORMS = (
    "What is {0}?", "Tell me about {0}.", "Write a Python function about {0}.", "Why do people like {0}?",
    "Translate into Chinese: I like {0}.", "How would you explain {0} to a child?", "Is {0} the same as {1}?",
    "Name three facts about {0}", "def about(x):  # {0}", "I do not understand {0}, can you help me?",
    "什么是{1}？", "请介绍一下{1}。", "用 Python 写一个关于{1}的函数。", "为什么人们喜欢{1}？",
    "把这句话翻译成英文：我喜欢{1}。", "怎样向孩子解释{1}？", "{1}和{0}一样吗？",
    "说出关于{1}的三件事", "写一首关于{1}的诗。", "我不懂{1}，你能帮我吗？",
)  # fmt: skip
PROMPTS = [form.format(*thing) for form, thing in itertools.product(FORMS, THINGS)]
PACKS = ("general_chat", "python_code")
ANSWER_TOKENS = 64
MAY_DIFFER = 2


@pytest.fixture(scope="module")
def host(cache: object) -> Host:
    return build(EngineConfig(cache_dir=cache, **EXACT))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def peers(host: Host) -> dict[str, EagerModel]:
    directories = {one.id: one.pack.directory for one in discover().packs}
    return {pack: EagerModel(directories["nano-base"], directories[pack]) for pack in PACKS}


def check(host: Host, peers: dict[str, EagerModel], prompts: list[str]) -> None:
    end, differing, worst = host.tokenizer.control("<|end|>"), 0, 0.0
    for number, prompt in enumerate(prompts):
        pack = PACKS[number % len(PACKS)]
        token_ids = render([Message("user", prompt)], host.tokenizer, generate=True).token_ids
        wanted, eager = peers[pack].greedy(token_ids, ANSWER_TOKENS, end)
        said, ours = greedy(host, pack, token_ids, end)
        same = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), None)
        rows = min(len(ours), len(eager)) if same is None else same + 1
        for i in range(rows):
            reference = eager[i].numpy()
            error = float(np.linalg.norm(ours[i] - reference))
            worst = max(worst, error / float(np.linalg.norm(reference)))
        if said != wanted:
            differing += 1
            first, second = np.sort(eager[rows - 1].numpy())[-2:][::-1]
            assert first - second < 4 * float(np.abs(ours[rows - 1] - eager[rows - 1].numpy()).max()), prompt
    print(f"{len(prompts)} prompts: {differing} differ, largest error of a row {worst:.1e}")
    assert differing <= MAY_DIFFER
    assert worst <= 1e-5


def greedy(host: Host, pack: str, token_ids: list[int], end: int) -> tuple[list[int], list[np.ndarray]]:
    """Answer with the engine's own stages; return the tokens and the logits that each was chosen from."""
    engine, sequence = host.engine, host.sequence()
    sequence.route = force([pack])
    said: list[int] = []
    with engine.slots.hold([pack]) as slots:
        placed = {pack: slots[0].content}
        engine.understanding.ingest(sequence, token_ids)
        logits = [engine.decoding.prefill(sequence, placed).copy()]  # type: ignore[arg-type]
        while len(said) < ANSWER_TOKENS and int(logits[-1].argmax()) != end:
            said.append(int(logits[-1].argmax()))
            logits.append(engine.decoding.step([sequence], [said[-1]], placed)[0].copy())  # type: ignore[arg-type]
    release(host, sequence)
    return said, logits


def release(host: Host, sequence: Sequence) -> None:
    host.engine.release(sequence)


def test_some_prompts_are_answered_as_eager_torch_answers_them(host: Host, peers: dict[str, EagerModel]) -> None:
    check(host, peers, PROMPTS[::17])


@pytest.mark.slow
def test_two_hundred_prompts_are_answered_as_eager_torch_answers_them(host: Host, peers: dict[str, EagerModel]) -> None:
    assert len(PROMPTS) == 200
    check(host, peers, PROMPTS)


def test_the_shipped_set_gives_the_same_logits_in_chunks_whole_and_token_by_token(host: Host) -> None:
    window = host.lineup.base.manifest.network.window  # type: ignore[union-attr]  # it is the base's
    token_ids = np.random.default_rng(0).integers(5, 8000, 5 * window.trained_tokens).tolist()
    ends = []
    for pieces in ([len(token_ids)], [700, 1, 1000, len(token_ids) - 1701], [4000, *[1] * (len(token_ids) - 4000)]):
        sequence = host.sequence()
        ends.append(fed(host.engine, sequence, token_ids, "python_code", pieces))
        release(host, sequence)
    for other in ends[1:]:
        assert np.linalg.norm(other - ends[0]) <= 1e-5 * np.linalg.norm(ends[0])
