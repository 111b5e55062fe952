"""Each hook with a good plugin, one that raises and one that answers amiss; none of them ever stops a caller."""

from types import SimpleNamespace

import numpy as np
import pytest

from modularbase_core.errors import PluginError
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.plugins import plugin_manager
from modularbase_core.sdk import hookimpl
from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished
from modularbase_core.sdk.fusion import Fusion

SCORES = {"general_chat": 0.1, "python_code": 0.9}
PACKS = ("general_chat", "python_code")
LOADED = PackLoaded("python_code", 1024, 0.25)
EVICTED = PackEvicted("python_code", "law")
FINISHED = TurnFinished({"python_code": 1.0}, SCORES, "stop", 12, 34, 0.5)
ARGUMENTS = {
    "scores": ("hello", SCORES),
    "route": ("hello", SCORES, PACKS),
    "fusions": (),
    "cold_stores": (),
    "fallback": ("python_code", ("general_chat", "law")),
    "importance": ("user", "hello", 3),
    "targets": (),
    "pack_loaded": (LOADED,),
    "pack_evicted": (EVICTED,),
    "turn_finished": (FINISHED,),
}
NOTHING = {
    "scores": SCORES,
    "route": None,
    "fusions": {},
    "cold_stores": {},
    "fallback": [],
    "importance": 0.0,
    "targets": {},
    "pack_loaded": None,
    "pack_evicted": None,
    "turn_finished": None,
}


def plugin(**functions):
    """Make a plugin of functions by hook, without the `modularbase_`."""
    return SimpleNamespace(
        **{
            f"modularbase_{name}": hookimpl(function, specname=f"modularbase_{name}")
            for name, function in functions.items()
        }
    )


def hooks_of(**plugins):
    manager = plugin_manager()
    for name, one in plugins.items():
        manager.register(one, name)
    return Hooks(manager)


def call(hooks, hook):
    return getattr(hooks, hook)(*ARGUMENTS[hook])


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_without_plugins_nothing_changes(hook):
    hooks = hooks_of()
    assert call(hooks, hook) == NOTHING[hook]
    assert hooks.take_faults() == []


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_plugin_without_an_opinion_changes_nothing(hook):
    hooks = hooks_of(silent=plugin(**{hook: lambda: None}))
    assert call(hooks, hook) == NOTHING[hook]
    assert hooks.take_faults() == []


@pytest.mark.parametrize(
    "error", [RuntimeError("first\nsecond"), SystemExit("first second"), RecursionError("first second")]
)
@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_plugin_that_raises_is_noted_once_and_left_out(hook, error):
    def fail():
        raise error

    hooks = hooks_of(bad=plugin(**{hook: fail}))
    assert call(hooks, hook) == NOTHING[hook]
    assert call(hooks, hook) == NOTHING[hook]
    told = f"plugin 'bad' failed in modularbase_{hook} ({type(error).__name__}: first second); it is left out"
    assert hooks.take_faults() == [told]
    assert hooks.take_faults() == []


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_an_interrupt_within_a_plugin_goes_through(hook):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(hooks_of(busy=plugin(**{hook: interrupted})), hook)


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_what_a_plugin_prints_is_not_taken_for_the_answer(hook, capsys):
    call(hooks_of(loud=plugin(**{hook: lambda: print("here")})), hook)
    assert tuple(capsys.readouterr()) == ("", "here\n")


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_wrappers_are_never_called(hook):
    def wrapper():
        return (yield)

    name = f"modularbase_{hook}"
    hooks = hooks_of(around=SimpleNamespace(**{name: hookimpl(wrapper, specname=name, wrapper=True)}))
    assert call(hooks, hook) == NOTHING[hook]
    assert hooks.take_faults() == []


class Unruly(dict):
    """A mapping that cannot be read."""

    def keys(self):
        raise RuntimeError("no")

    __iter__ = keys


@pytest.mark.parametrize(
    ("hook", "answer", "told"),
    [
        ("scores", "high", "with a value of type str where a mapping is wanted"),
        ("scores", [0.5], "with a value of type list where a mapping is wanted"),
        ("scores", {"python_code": "high"}, "with 'high' where a number from 0 to 1 is wanted"),
        ("scores", {"python_code": None}, "with None where a number from 0 to 1 is wanted"),
        ("scores", {"python_code": True}, "with True where a number from 0 to 1 is wanted"),
        ("scores", {"python_code": float("nan")}, "with nan where a number from 0 to 1 is wanted"),
        ("route", "python_code", "with a value of type str where a list is wanted"),
        ("route", [["python_code"]], "with [['python_code']] where a list of pack ids is wanted"),
        ("route", (3,), "with (3,) where a list of pack ids is wanted"),
        ("cold_stores", {"mine": 3}, "with a mapping that holds a value of type int where a callable is wanted"),
        ("fusions", Fusion("mine", min), "with a value of type Fusion where a list is wanted"),
        ("fusions", ["mine"], "with a list that holds a value of type str where modularbase_core.sdk.fusion.Fusion is"),
        ("fallback", {"law"}, "with a value of type set where a list is wanted"),
        ("importance", "much", "with 'much' where a number from 0 to 1 is wanted"),
        ("importance", True, "with True where a number from 0 to 1 is wanted"),
        ("importance", float("inf"), "with inf where a number from 0 to 1 is wanted"),
        ("targets", ["cpu"], "with a value of type list where a mapping is wanted"),
        ("targets", {"cpu": "x86"}, "with a value of type str where a mapping is wanted"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_noted_and_left_out(hook, answer, told):
    hooks = hooks_of(bad=plugin(**{hook: lambda: answer}))
    assert call(hooks, hook) == NOTHING[hook]
    (fault,) = hooks.take_faults()
    assert fault.startswith(f"plugin 'bad' answers modularbase_{hook} {told}")
    assert fault.endswith("; its answer is left out")


def test_an_answer_that_cannot_be_read_is_a_plugin_that_raises():
    hooks = hooks_of(bad=plugin(scores=lambda: Unruly(a=1)))
    assert call(hooks, "scores") == SCORES
    assert "failed in modularbase_scores (RuntimeError: no)" in hooks.take_faults()[0]


def test_a_bad_plugin_takes_nothing_from_a_good_one():
    def failing():
        return lambda: {}["disk"]

    hooks = hooks_of(
        good=plugin(scores=lambda: {"python_code": 0.2}, fallback=lambda: ["law"], importance=lambda: 0.5),
        bad=plugin(scores=failing(), fallback=failing(), importance=failing()),
        wrong=plugin(scores=lambda: 3, fallback=lambda: 3, importance=lambda: "3"),
    )
    assert call(hooks, "scores")["python_code"] == 0.2
    assert call(hooks, "fallback") == ["law"]
    assert call(hooks, "importance") == 0.5
    assert len(hooks.take_faults()) == 6


def test_scores_are_changed_in_turn_clipped_and_kept_to_the_packs_that_are_there():
    seen = []

    def first(message, scores):
        seen.append((message, dict(scores)))
        scores["python_code"] = 0.0  # its own copy
        return {"general_chat": np.float32(0.5), "law": 1.0}

    def second(scores):
        seen.append(dict(scores))
        return {"general_chat": scores["general_chat"] + 7, "python_code": -1}

    given = dict(SCORES)
    hooks = hooks_of(first=plugin(scores=first), second=plugin(scores=second))
    assert hooks.scores("hello", given) == {"general_chat": 1.0, "python_code": 0.0}
    assert seen == [("hello", SCORES), {"general_chat": 0.5, "python_code": 0.9}]
    assert given == SCORES
    assert hooks.take_faults() == []


def test_the_plugin_registered_last_routes_first_and_none_passes_on():
    hooks = hooks_of(
        ours=SimpleNamespace(
            modularbase_route=hookimpl(lambda: ["general_chat"], specname="modularbase_route", trylast=True)
        ),
        picks=plugin(route=lambda message: ["python_code", "law", "python_code"] if "code" in message else None),
        silent=plugin(route=lambda: []),
    )
    assert hooks.route("some code", SCORES, PACKS) == ("picks", ["python_code"])
    assert hooks.route("hello", SCORES, PACKS) == ("ours", ["general_chat"])
    assert hooks.take_faults() == []


@pytest.mark.parametrize("hook", ["route", "fallback"])
def test_a_choice_of_packs_that_cannot_answer_is_noted_and_the_next_plugin_asked(hook):
    hooks = hooks_of(good=plugin(**{hook: lambda: ("general_chat",)}), lost=plugin(**{hook: lambda: ["gone", "away"]}))
    answer = call(hooks, hook)
    assert (answer[1] if hook == "route" else answer) == ["general_chat"]
    assert hooks.take_faults() == ["plugin 'lost' chooses gone, away, none of which can answer; its choice is left out"]


def test_a_plugins_fusion_or_target_wins_over_ours_of_that_name():
    ours, theirs, other = (Fusion(name, min) for name in ("mean", "mean", "mine"))
    hooks = hooks_of(
        ours=plugin(fusions=lambda: [ours], targets=lambda: {"cpu": {"name": "ours"}}),
        theirs=plugin(fusions=lambda: (theirs, other), targets=lambda: {"cpu": {"name": "theirs"}, "arm": {}}),
    )
    assert hooks.fusions() == {"mean": theirs, "mine": other}
    assert hooks.fusions()["mean"] is theirs
    assert hooks.targets() == {"cpu": {"name": "theirs"}, "arm": {}}


def test_the_highest_importance_counts_within_0_and_1():
    hooks = hooks_of(
        low=plugin(importance=lambda role, text, age: 0.25 if (role, text, age) == ("user", "hello", 3) else 1.0),
        high=plugin(importance=lambda: np.float32(0.5)),
        negative=plugin(importance=lambda: -3),
    )
    assert call(hooks, "importance") == 0.5
    assert hooks_of(over=plugin(importance=lambda: 7)).importance("user", "", 0) == 1.0


@pytest.mark.parametrize(
    ("hook", "event"), [("pack_loaded", LOADED), ("pack_evicted", EVICTED), ("turn_finished", FINISHED)]
)
def test_every_plugin_hears_an_event(hook, event):
    heard = []
    hooks = hooks_of(
        one=plugin(**{hook: lambda event: heard.append(("one", event))}),
        two=plugin(**{hook: lambda event: heard.append(("two", event)) or "ignored"}),
    )
    getattr(hooks, hook)(event)
    assert heard == [("two", event), ("one", event)]
    assert hooks.take_faults() == []


def test_what_a_plugin_does_to_an_event_reaches_no_turn():
    packs, scores = {"a": 1.0}, {"a": 0.9}
    event = TurnFinished(packs, scores, "stop", 1, 1, 0.1)
    hooks_of(rude=plugin(turn_finished=lambda event: event.packs.clear() or event.scores.clear())).turn_finished(event)
    assert (packs, scores) == ({"a": 1.0}, {"a": 0.9})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("", min), "named ''"), ((3, min), "named 3"), (("x", 3), "'x' weighs by 3; use a function")],
)
def test_a_fusion_that_makes_no_sense_is_refused(arguments, told):
    with pytest.raises(PluginError, match=told):
        Fusion(*arguments)
