"""A whole evaluation: every metric over rows and domains, and what cannot be measured."""

import json
import math

import pytest
from asking import question, text

from modularbase_core.errors import DataError
from modularbase_core.evaluate.document import document
from modularbase_core.evaluate.generate import Answer
from modularbase_core.evaluate.perplexities import perplexities
from modularbase_core.evaluate.routing import pack_of
from modularbase_core.evaluate.run import LACKING, Evaluation
from modularbase_core.evaluate.sandbox import Sandbox
from modularbase_core.evaluate.selection import NONE, ROUTED, select, without_packs
from modularbase_core.evaluate.settings import METRICS, EvaluationSettings

ADD = "Write add.\nassert add(1, 2) == 3"
CASES = [
    text("A list keeps its order.", "books"),
    text("word " * 400, "books"),
    question("What is a list?", "A sequence.", "python", labelled=True),
    question("Who are you?", "A model.", "general", labelled=True),
    question("Is it cold?", "So the answer is no.", "asked"),
    question("Which?\nA) one\nB) two\nC) three", "The answer is B.", "asked", final="B"),
    question("How many?", "The answer is 1,000.", "asked"),
    question(ADD, "def add(a, b):\n    return a + b", "code"),
]


def evaluate(model, cases, *, every=False, words=(), none=False, told=None, **more):
    rows = select(model.catalog, model.lineup, words, none=none, every=every, slots=2)
    progress = (lambda *step: told.append(step)) if told is not None else (lambda *step: None)
    return rows, Evaluation(model, cases, rows, EvaluationSettings(max_tokens=4, **more), progress).run()


@pytest.fixture(scope="module")
def everything(model):
    told = []
    rows, results = evaluate(model, CASES, every=True, metrics=METRICS, told=told)
    return rows, results, told


def test_every_metric_has_every_row_and_is_plain_json(model, everything):
    rows, results, _ = everything
    assert [row.name for row in rows] == [NONE, "python_code", ROUTED]
    assert list(results.metrics) == ["perplexity", "routing", "choice", "exact", "pass@k"]
    assert set(results.seconds) == set(METRICS)
    for name in ("perplexity", "choice", "exact", "pass@k"):
        assert list(results.metrics[name]) == [row.name for row in rows]
    described = document(model.lineup, model.config, [], rows, EvaluationSettings(), results)
    assert json.loads(json.dumps(described)) == described
    packs = {one["id"]: one for one in described["packs"]}
    assert set(packs) == {"tiny-base", "tiny-router", "general_chat", "python_code"}
    assert all(len(one["weights_sha256"]) == 64 for one in packs.values())


def test_perplexities_are_those_of_their_records(model, everything):
    found = everything[1].metrics["perplexity"]
    assert set(found[NONE]["domains"]) == {"books", "python", "general", "asked", "code"}
    for row in found.values():
        parts = row["domains"].values()
        assert row["all"]["tokens"] == sum(one["tokens"] for one in parts)
        assert row["all"]["nats"] == pytest.approx(sum(one["nats"] for one in parts))
        for name, one in row["domains"].items():
            assert one["perplexity"] == pytest.approx(math.exp(one["nats"] / one["tokens"]))
            assert one["bits_per_byte"] == pytest.approx(one["nats"] / math.log(2) / one["bytes"])
            assert one["ratio"] == pytest.approx(one["perplexity"] / found[NONE]["domains"][name]["perplexity"])
    assert {one["ratio"] for one in found[NONE]["domains"].values()} == {1.0}
    scorer = model.scorer(["general_chat"])
    alone = perplexities(CASES[:2], [without_packs(model.lineup)], [None, None], scorer)
    assert alone[NONE]["all"]["nats"] == pytest.approx(found[NONE]["domains"]["books"]["nats"], rel=1e-5)


def test_routed_records_are_those_of_the_pack_that_the_router_chose(model, everything):
    found = everything[1].metrics["perplexity"]
    for case in CASES[2:4]:
        row = {"general_chat": NONE}.get(pack := model.messages.route(case.message).ids[0], pack)
        routed, alone = (found[name]["domains"][case.domain] for name in (ROUTED, row))
        assert routed["nats"] == pytest.approx(alone["nats"], rel=1e-5)


def test_routing_counts_labelled_messages_alone(model, everything):
    found = everything[1].metrics["routing"]
    assert found["all"]["records"] == 2
    assert found["packs"] == {"python": "python_code", "general": "general_chat"}
    assert sum(sum(row.values()) for row in found["confusion"].values()) == 2
    right = sum(found["confusion"].get(pack, {}).get(pack, 0) for pack in ("python_code", "general_chat"))
    assert found["all"]["right"] == right
    assert [pack_of(word, model.catalog, model.lineup) for word in ("chat", "python", "tiny-base", "poetry")] == [
        *("general_chat", "python_code"),
        *("general_chat", "general_chat"),
    ]


def test_options_are_weighed_where_there_are_any(everything):
    for row in everything[1].metrics["choice"].values():
        assert row["all"]["records"] == 2
        assert row["all"]["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
        assert row["all"]["by_text"]["records"] == 1
        assert row["all"]["right"] in (0, 1, 2)


def test_answers_are_generated_and_told_one_by_one(everything):
    rows, results, _ = everything
    exact = results.metrics["exact"][ROUTED]
    assert exact["all"]["records"] == 3
    lines = [one for one in results.answers if one["metric"] == "exact"]
    assert len(lines) == 3 * len(rows)
    assert sum(one["right"] for one in lines if one["row"] == ROUTED) == exact["all"]["right"]
    assert {one["packs"][0] for one in lines if one["row"] == "python_code"} == {"python_code"}
    programs = [one for one in results.answers if one["metric"] == "pass@k"]
    assert [one["row"] for one in programs] == [row.name for row in rows]
    assert results.metrics["pass@k"][NONE]["all"]["records"] == 1


def test_progress_comes_to_its_end(everything):
    told = everything[2]
    for phase in ("routing", "perplexity", "exact: answering", "pass@k: answering", "running programs"):
        done, total = [step[1:] for step in told if step[0] == phase][-1]
        assert done == total > 0


@pytest.fixture
def right_answers(monkeypatch):
    """The model writes the right program every time."""
    right = Answer(CASES[-1].response, ("general_chat",), "stop")
    monkeypatch.setattr("modularbase_core.evaluate.run.answers", lambda host, asked, done: [right for _ in asked])


def test_a_right_program_passes(model, right_answers):
    _, results = evaluate(model, CASES, metrics=("pass@k",), k=(1, 2), samples=3)
    found = results.metrics["pass@k"][ROUTED]["all"]
    assert (found["pass@1"], found["pass@2"], found["programs"]) == (1.0, 1.0, 3)
    assert results.notes == []


def test_what_a_system_does_not_keep_from_programs_is_noted(model, right_answers, monkeypatch):
    monkeypatch.setattr(Sandbox, "unconfined", lambda self: ["they may use the network"])
    _, results = evaluate(model, CASES, metrics=("pass@k",))
    assert results.notes == ["programs are not wholly confined on this system: they may use the network"]


def test_by_default_perplexity_and_routing_where_domains_are_labelled(model):
    _, results = evaluate(model, CASES[:2])
    assert list(results.metrics) == ["perplexity"]
    assert list(results.metrics["perplexity"]) == [NONE, ROUTED]
    _, results = evaluate(model, CASES[:3], words=["python"])
    assert list(results.metrics) == ["perplexity", "routing"]
    assert list(results.metrics["perplexity"]) == [NONE, "python_code"]


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_with_nothing_to_measure_is_told_before_anything_is_computed(model, metric):
    silent = question("Tell me.")
    told = []
    with pytest.raises(DataError) as raised:
        evaluate(model, [silent], metrics=(metric,), told=told)
    assert str(raised.value) == LACKING[metric]
    assert told == []
    with pytest.raises(DataError, match="no record has a text"):
        evaluate(model, [silent])


def test_a_message_that_is_too_long_to_be_routed_is_noted(model):
    long = question("word " * 5000, "Yes.", "asked")
    _, results = evaluate(model, [long, CASES[0]])
    assert results.notes == ["1 of 2 records cannot be routed (too long, or empty); general chat answers"]
    assert results.metrics["perplexity"][ROUTED]["all"]["records"] == 1  # its answer lies beyond the window


def test_a_domain_that_no_pack_answers_is_noted(model):
    _, results = evaluate(model, [question("Sew?", "No.", "sewing", labelled=True)], metrics=("routing",))
    assert results.notes == ["no pack is called 'sewing', so its messages belong to general_chat"]
