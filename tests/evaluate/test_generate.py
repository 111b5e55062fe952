"""Answers are generated many at once, and are those that each question gets alone."""

import pytest
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.evaluate.generate import Answer, Asked, answers
from modularbase_core.host import build
from modularbase_core.host.memory import MAX_RUNNING
from modularbase_core.text.template import Message
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed, Token

GREEDY = SamplingConfig(temperature=0, max_tokens=6)


def asked(text, packs=(), sampling=GREEDY):
    return Asked((Message("user", text),), packs, sampling)


def alone(host, one):
    events = list(host.chat(one.messages, one.sampling, packs=one.packs))
    said = "".join(event.text for event in events if isinstance(event, (Token, Finished)))
    return said, next(tuple(pack.id for pack in event.packs) for event in events if isinstance(event, Routed))


def test_many_questions_are_answered_together_as_each_alone(model):
    questions = [asked(f"question {number} " * (1 + number % 5)) for number in range(2 * MAX_RUNNING + 3)]
    questions += [asked("and this?", ("python_code",)), asked("and both?", ("python_code", "general_chat"))]
    told = []
    given = answers(model.host, questions, told.append)
    assert sum(told) == len(questions)
    for one, answer in zip(questions, given, strict=True):
        assert (answer.text, answer.packs) == alone(model.host, one)
        assert answer.reason in ("stop", "length")
        assert 0 < answer.tokens <= 6
    assert given[-1].packs == ("python_code", "general_chat")


def test_a_seed_is_each_answers_own(model):
    drawn = [asked("hello", (), SamplingConfig(temperature=1.0, max_tokens=6, seed=seed)) for seed in (1, 2, 1)]
    first, second, again = (answer.text for answer in answers(model.host, drawn))
    assert first == again != second


def test_a_question_that_cannot_be_asked_leaves_the_others(model):
    questions = [asked("word " * 5000), asked("hello"), Asked((Message("assistant", "hi"),), (), GREEDY)]
    long, good, unordered = answers(model.host, questions)
    assert long.packs
    assert good.packs
    assert (unordered.text, unordered.packs) == ("", ())
    assert "from the assistant" in unordered.reason


def test_questions_that_do_not_fit_together_are_answered_a_few_at_once(model, tiny_packs):
    config = EngineConfig(cache_dir=model.config.cache_dir, hot_tokens=1024, memory_bytes=64 << 20)
    long = [asked(f"word {number} " * 60) for number in range(6)]
    with build(config, catalog=catalog_of(tiny_packs)) as host:
        pages = host.engine.understanding.hot.pool
        taken = pages.allocate(pages.free_count - 20)  # room for one or two of them
        given = answers(host, long)
        pages.free(taken)
    assert [answer.text for answer in given] == [alone(model.host, one)[0] for one in long]


def test_no_answer_holds_a_page_afterwards(model):
    engine = model.host.engine

    def not_held():
        return engine.understanding.hot.pool.free_count + engine.decoding.sharing.held_pages

    before = not_held()
    answers(model.host, [asked(f"word {number} " * 60) for number in range(20)])
    assert not_held() == before

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answers(model.host, [asked(f"word {number}") for number in range(10)], stop)
    assert not_held() == before
    assert answers(model.host, []) == []
    assert answers(model.host, [asked("hello")])[0] != Answer()
