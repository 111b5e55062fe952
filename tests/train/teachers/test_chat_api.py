"""A teacher behind a URL: asked at its pace, again while there is hope, and given up in one sentence."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_service import Service, answer, running

from modularbase_core.errors import DataError, TrainingError
from modularbase_core.train.recipe import Teacher
from modularbase_core.train.teachers.answers import Answers, Asked
from modularbase_core.train.teachers.chat_api import ChatApi

EVERY = [Asked(f"question {number}", f"key{number}") for number in range(12)]


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as one:
        yield one


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "run/teacher.jsonl")


def teacher(service: Service, **more: object) -> Teacher:
    return Teacher(kind="openai", url=service.url, model="big", **{"retries": 2, "timeout_seconds": 5.0, **more})


def ask(service: Service, answers: Answers, key: str | None = None, every=EVERY, **more: object) -> list[float]:
    """Ask all; return how long it waited before it tried again."""
    waited: list[float] = []
    ChatApi(teacher(service, **more), key, waited.append).answer(every, answers, quiet=True)
    return waited


def test_every_prompt_is_answered_once_and_told_where_from(service, answers):
    ask(service, answers, "secret", system="Be brief.", longest=9, sampling_temperature=0.5)
    assert sorted(service.prompts) == sorted(one.prompt for one in EVERY)
    assert set(service.keys) == {"Bearer secret"}
    body = service.asked[0]
    assert {key: body[key] for key in ("model", "max_tokens", "temperature")} == {
        "model": "big",
        "max_tokens": 9,
        "temperature": 0.5,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    lines = [json.loads(line) for line in answers.path.read_text().splitlines()]
    assert {line["response"] for line in lines} == {f"I say {one.prompt}" for one in EVERY}
    one = lines[0]
    assert (one["source"], one["model"], one["host"], one["finish"]) == ("openai", "big", service.url[7:-3], "stop")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", one["date"])
    assert "secret" not in answers.path.read_text()


def test_what_is_there_is_not_asked_again_and_a_torn_line_is(service, answers):
    ask(service, answers)
    raw = answers.path.read_bytes()
    lines = raw.splitlines(keepends=True)
    answers.path.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    kept = {json.loads(line)["key"] for line in lines[:7]}
    service.asked.clear()
    again = Answers(answers.path)
    assert len(again) == 7
    ask(service, again)
    assert sorted(service.prompts) == sorted(one.prompt for one in EVERY if one.key not in kept)
    assert len(Answers(answers.path)) == 12
    service.asked.clear()
    ask(service, Answers(answers.path))
    assert not service.asked


def test_no_more_than_so_many_are_asked_at_once(service, answers):
    service.delay = 0.05
    ask(service, answers, concurrency=3)
    assert service.most_at_once == 3


def test_requests_keep_their_pace(service, answers):
    waited = ask(service, answers, concurrency=1, requests_per_minute=600.0, every=EVERY[:4])
    assert len(waited) == 3
    assert all(0 < seconds <= 0.31 for seconds in waited)


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        ((429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}), [7.0]),
        ((429, {"error": "slow down"}, {"Retry-After": "9999"}), [60.0]),
        ((429, "", {"Retry-After": "soon"}), [1.0]),
        ((503, "<html>busy</html>", {}), [1.0]),
        ((200, "no json", {}), [1.0]),
        ((200, {"choices": []}, {}), [1.0]),
        ((200, {"choices": [{"message": {"content": 3}}]}, {}), [1.0]),
    ],
)
def test_a_passing_failure_is_waited_out(service, answers, failure, seconds):
    service.reply = lambda number, body: failure if number == 0 else None
    assert ask(service, answers, every=EVERY[:1]) == seconds
    assert len(service.asked) == 2
    assert answers.response(EVERY[0]) == "I say question 0"


def test_it_waits_twice_as_long_each_time_and_then_gives_up(service, answers):
    service.reply = lambda number, body: (502, {"error": {"message": "bad\n gateway"}}, {}) if number > 3 else None
    waited: list[float] = []
    with pytest.raises(TrainingError, match=r"gave no answer in 4 tries \(502: bad gateway\); the answers so far are"):
        ChatApi(teacher(service, retries=3, concurrency=1), None, waited.append).answer(EVERY, answers, quiet=True)
    assert waited[:3] == [1.0, 2.0, 4.0]
    assert len(Answers(answers.path)) == 4


def test_a_service_that_takes_too_long_is_told(service, answers):
    service.delay = 0.3
    with pytest.raises(
        TrainingError, match=r"gave no answer in 1 tries \(it takes too long\); the answers so far are kept"
    ):
        ask(service, answers, retries=0, timeout_seconds=0.05, every=EVERY[:1])


def test_a_service_that_is_not_there_is_told(answers, service):
    settings = Teacher(kind="openai", url="http://127.0.0.1:9/v1", model="big", retries=1)
    with pytest.raises(TrainingError, match=r"127.0.0.1:9 gave no answer in 2 tries \(Connection refused\)"):
        ChatApi(settings, None, lambda seconds: None).answer(EVERY, answers, quiet=True)


@pytest.mark.parametrize(
    ("status", "more", "told"),
    [
        (401, {"key_variable": "THE_KEY"}, r"refuses the key in THE_KEY \(401: no\); set a key that it takes"),
        (403, {}, r"refuses to answer without a key, name its variable as key_variable and \(403: no\)"),
        (404, {}, r"has no model 'big', or no /chat/completions under http://.*/v1 \(404: no\); check teacher.url"),
        (400, {}, r"refuses what it is asked \(400: no\); check model and longest"),
        (302, {}, r"answers with 302: no; check teacher.url"),
    ],
)
def test_what_no_waiting_mends_is_told_at_once(service, answers, status, more, told):
    service.reply = lambda number, body: (status, {"error": {"message": "no"}}, {"Location": "http://127.0.0.1:9/"})
    with pytest.raises(TrainingError, match=told):
        ask(service, answers, "wrong", concurrency=1, **more)
    assert len(service.asked) == 1


def test_a_single_prompt_that_is_refused_stops_nothing(service, answers):
    def reply(number, body):
        return (
            (400, {"error": {"message": "too long"}}, {}) if body["messages"][-1]["content"] == "question 5" else None
        )

    service.reply = reply
    ask(service, answers, concurrency=1)
    assert answers.response(EVERY[5]) == ""
    taken = [json.loads(line) for line in answers.take(EVERY).read_text().splitlines()]
    assert [one["prompt"] for one in taken] == [one.prompt for one in EVERY if one.prompt != "question 5"]
    service.asked.clear()
    ask(service, Answers(answers.path))
    assert not service.asked


def test_a_failure_keeps_what_came_and_leaves_no_thread(service, answers):
    service.delay = 0.02
    service.reply = lambda number, body: (401, {}, {}) if number == 6 else None
    before = threading.active_count()
    with pytest.raises(TrainingError):
        ask(service, answers, concurrency=2)
    assert 5 <= len(Answers(answers.path)) < 12
    assert threading.active_count() <= before + 1  # the service's own may be closing


def test_answers_without_text_leave_nothing_to_learn(service, answers):
    service.reply = lambda number, body: (200, answer(None), {})
    ask(service, answers)
    with pytest.raises(DataError, match="the teacher answered none of 12 prompts with any text; look at"):
        answers.take(EVERY)


def test_a_file_of_something_else_is_told(tmp_path):
    (tmp_path / "teacher.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"teacher.jsonl:1 is no answer of a teacher; remove the line or the file"):
        Answers(tmp_path / "teacher.jsonl")
