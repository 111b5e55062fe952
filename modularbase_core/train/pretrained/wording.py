"""A checkpoint's chat template as data: what it puts around messages, found by rendering a few and checked on more.

The template is a Jinja program. It is run here once, in Jinja's sandbox; what is kept are strings (`sdk.template`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import TokenizerError
from modularbase_core.sdk.jsonfile import read_json, shown
from modularbase_core.sdk.template import Around, ChatTemplate

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
JINJA_FILE: Final = "chat_template.jinja"
_LIMIT_BYTES: Final = 64 << 20
_LONGEST: Final = 200_000
_CHATML: Final = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_S, _U, _A, _V = "sentence-of-system", "first-question", "an-answer", "second-question"
_MEND: Final = "write its form down in a template.json (see docs/pack-format.md) and name it with --template"

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages, bool], str]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer.json says of itself. special: the names of its control tokens, by id; largest: the last id."""

    special: Mapping[int, str]
    largest: int


def read_wording(directory: Path, vocabulary: Vocabulary) -> ChatTemplate:
    """Return how a checkpoint writes conversations down.

    One without a template that knows ChatML's tokens is taken to speak that, as Qwen2's base models do. Raises
    TokenizerError where the template does more than put text around messages, or where there is none.
    """
    config = _object(directory / TOKENIZER_CONFIG)
    source = _source(directory, config)
    stops = _stops(directory, config, vocabulary)
    border = _border(config, vocabulary, stops)
    if source is None:
        names = set(vocabulary.special.values())
        if not names.issuperset(_CHATML):
            raise TokenizerError(f"{directory} brings no chat template; {_MEND}")
        roles = {role: Around(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
        return ChatTemplate(
            begin="", system="", roles=roles, document=Around(border, border), stops=_distinct("<|im_end|>", *stops)
        )
    render = _renderer(source, config, directory)
    found = _found(render, _token(config, "bos_token"), Around(border, border), stops, directory)
    closes = found.roles["assistant"].close
    leading = [name for name in vocabulary.special.values() if closes.startswith(name)]
    return ChatTemplate(
        begin=found.begin,
        system=found.system,
        roles=found.roles,
        document=found.document,
        stops=_distinct(*leading, *stops),
    )


def _found(render: Render, bos: str, document: Around, stops: tuple[str, ...], directory: Path) -> ChatTemplate:
    """Take a template's parts from three conversations, and hold them against others."""
    user, system = {"role": "user", "content": _U}, {"role": "system", "content": _S}
    answer, again = {"role": "assistant", "content": _A}, {"role": "user", "content": _V}
    asked, open_ = render([user], False), render([user], True)
    told, whole = render([user, answer], False), render([user, answer, again], False)
    led = render([system, user], False)
    try:
        user_close = _cut(asked, _U)[1]
        assistant_open = open_.removeprefix(asked)
        assistant_close = _cut(told, _A)[1]
        user_open = _cut(_cut(whole, _A)[1], _V)[0].removeprefix(assistant_close)
        before, after = _cut(led, _S)
        system_close = _cut(after, _U)[0].removesuffix(user_open)
        lead = _cut(asked, _U)[0].removesuffix(user_open)
    except ValueError as error:
        raise TokenizerError(f"{directory}: its chat template leaves out what {error} says; {_MEND}") from error
    begin = bos if bos and before.startswith(bos) else "" if lead.startswith(before) else lead
    system_open = before.removeprefix(begin)
    said = lead.removeprefix(begin).removeprefix(system_open).removesuffix(system_close)
    template = ChatTemplate(
        begin=begin,
        system="" if lead == begin else said,
        roles={
            "system": Around(system_open, system_close),
            "user": Around(user_open, user_close),
            "assistant": Around(assistant_open, assistant_close),
        },
        document=document,
        stops=stops,
    )
    for turns, with_system, open_ended in itertools.product((1, 2, 3), (False, True), (False, True)):
        messages: list[Mapping[str, str]] = [{"role": "system", "content": "Be a poet."}] if with_system else []
        for turn in range(turns):
            messages.append({"role": "user", "content": f"Question {turn}: what is {turn} + 1?"})
            messages.append({"role": "assistant", "content": f"It is {turn + 1}."})
        messages = messages[:-1] if open_ended else messages
        if render(messages, open_ended) != _written(template, messages, open_ended):
            raise TokenizerError(f"{directory}: its chat template does more than put text around messages; {_MEND}")
    return template


def _written(template: ChatTemplate, messages: Messages, open_ended: bool) -> str:
    """Write a conversation down as `text.template` will."""
    said = list(messages)
    if template.system and said[0]["role"] != "system":
        said = [{"role": "system", "content": template.system}, *said]
    around = template.roles
    parts = [around[one["role"]].open + one["content"] + around[one["role"]].close for one in said]
    return template.begin + "".join(parts) + (around["assistant"].open if open_ended else "")


def _renderer(source: str, config: Mapping[str, Any], directory: Path) -> Render:
    # torch brings Jinja along; it is read here alone
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    names = {key: _token(config, key) for key in ("bos_token", "eos_token")}

    def render(messages: Messages, open_ended: bool) -> str:
        try:
            return environment.from_string(source).render(
                messages=[dict(one) for one in messages],
                add_generation_prompt=open_ended,
                raise_exception=refuse,
                tools=None,
                **names,
            )
        # a template can fail in any way that Python does
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TokenizerError(f"{directory}: its chat template cannot be used ({reason:.200}); {_MEND}") from error

    return render


def _cut(text: str, at: str) -> tuple[str, str]:
    before, found, after = text.partition(at)
    if not found:
        raise ValueError({_S: "the system", _A: "the assistant"}.get(at, "the user"))
    return before, after


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
    """Return the template's text: of a file of its own, or of the tokenizer's configuration."""
    path = directory / JINJA_FILE
    if path.is_file():
        try:
            given: Any = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path} cannot be read ({error}); download the checkpoint again") from error
    else:
        given = config.get("chat_template")
        if isinstance(given, list):  # several by name
            by_name = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
            given = by_name.get("default")
    if given is None:
        return None
    if not isinstance(given, str) or len(given) > _LONGEST:
        raise TokenizerError(f"{directory}: chat_template is {shown(given)}; expected a text; {_MEND}")
    return given


def _stops(directory: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[str, ...]:
    """Name the control tokens that end an answer: those that generation ends with."""
    ids: list[Any] = []
    for file in ("generation_config.json", "config.json"):
        value = _object(directory / file).get("eos_token_id")
        ids += value if isinstance(value, list) else [value]
    names = [vocabulary.special[one] for one in ids if type(one) is int and one in vocabulary.special]
    names.append(_token(config, "eos_token"))
    return _distinct(*(name for name in names if name in vocabulary.special.values()))


def _border(config: Mapping[str, Any], vocabulary: Vocabulary, stops: Sequence[str]) -> str:
    """Name the control token that stands between documents."""
    names = list(vocabulary.special.values())
    for name in ("<|endoftext|>", _token(config, "pad_token"), _token(config, "bos_token"), *stops, *names):
        if name in names:
            return name
    raise TokenizerError("the tokenizer has no control token at all; name a checkpoint that talks")


# Any, here and above: whatever JSON held
def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path, _LIMIT_BYTES, TokenizerError) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _token(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
