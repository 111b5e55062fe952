import json
from pathlib import Path
from typing import Any

import pytest
from chatml import CHATML, CONTROL, JINJA

from modularbase_core.errors import TokenizerError
from modularbase_core.sdk.template import Around, ChatTemplate
from modularbase_core.train.pretrained.wording import Vocabulary, read_wording

VOCABULARY = Vocabulary(dict(enumerate((*CONTROL, "<bos>", "<eos>", "<user>", "<assistant>"), 300)), 306)
BY_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% elif message.role == 'user' %}{{ '<user>' + message.content }}"
    "{% else %}{{ '<assistant>' + message.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def read(tmp_path: Path, template: object = None, ends: object = None, **config: Any) -> ChatTemplate:
    given = {} if template is None else {"chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**given, **config}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return read_wording(tmp_path, VOCABULARY)


def test_qwen2s_template_is_chatml_with_its_system_message(tmp_path: Path) -> None:
    assert read(tmp_path, JINJA, [302, 300]) == CHATML


def test_a_template_by_turns_begins_with_its_token(tmp_path: Path) -> None:
    got = read(tmp_path, BY_TURNS, 304, bos_token={"content": "<bos>"}, eos_token="<eos>")
    assert (got.begin, got.system, got.stops) == ("<bos>", "", ("<eos>",))
    assert got.roles == {
        "system": Around("", "\n\n"),
        "user": Around("<user>", ""),
        "assistant": Around("<assistant>", "<eos>"),
    }


def test_a_template_of_its_own_file_goes_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(JINJA)
    assert read(tmp_path, "{{ 1/0 }}", [302, 300]) == CHATML


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "{{ 1/0 }}"}, {"name": "default", "template": JINJA}]
    assert read(tmp_path, named, [302, 300]) == CHATML


def test_a_checkpoint_without_a_template_speaks_chatml_if_it_knows_its_tokens(tmp_path: Path) -> None:
    got = read(tmp_path, None, 300)
    assert (got.roles, got.system, got.stops) == (CHATML.roles, "", ("<|im_end|>", "<|endoftext|>"))
    with pytest.raises(TokenizerError, match=r"brings no chat template; write its form down in a template\.json"):
        read_wording(tmp_path, Vocabulary({300: "<eos>"}, 300))


def test_what_closes_an_answer_ends_it(tmp_path: Path) -> None:
    assert read(tmp_path, JINJA, 300, eos_token="<|endoftext|>").stops == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ 1/0 }}", r"cannot be used \(division by zero\)"),
        ("{% for", "cannot be used"),
        ("{{ raise_exception('only with tools') }}", r"cannot be used \(only with tools\)"),
        ("{{ ''.__class__.__mro__ }}", "cannot be used .*unsafe"),
        ("{{ messages[0].content | upper }}", "leaves out what the user says"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "leaves out what the assistant says",
        ),
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ loop.index }}\n{% endfor %}",
            "does more than put text",
        ),
        (JINJA.replace("message['content']", "(message['content'] | replace('1', '2'))"), "does more than put text"),
        (3, "chat_template is 3; expected a text"),
        ("x" * 300_000, "expected a text"),
    ],
)
def test_a_program_that_is_no_frame_around_messages_is_refused(tmp_path: Path, template: object, told: str) -> None:
    with pytest.raises(TokenizerError, match=told) as caught:
        read(tmp_path, template)
    assert "--template" in str(caught.value)
    assert "\n" not in str(caught.value)
