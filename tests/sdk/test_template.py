import json
from pathlib import Path

import pytest

from modularbase_core.errors import ManifestError
from modularbase_core.sdk.template import check_template, read_template, template_text
from modularbase_core.text.template import OURS

SOUND = json.loads(template_text(OURS))


def written(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "template.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path, SOUND)
    assert read_template(path) == OURS
    check_template(path, {"<|begin|>", "<|end|>"})


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], r"template\.json is \[\]; expected an object with begin"),
        ({**SOUND, "stop": ["x"]}, r"unknown key 'stop' \(did you mean 'stops'\?\)"),
        ({key: SOUND[key] for key in SOUND if key != "begin"}, "lacks the key 'begin'; add it"),
        ({**SOUND, "begin": 3}, "begin is 3; expected a string"),
        ({**SOUND, "stops": []}, r"stops is \[\]; expected a list of control tokens"),
        ({**SOUND, "stops": [None]}, "stops is None; expected a string"),
        ({**SOUND, "roles": {**SOUND["roles"], "tool": {}}}, "roles has the unknown key 'tool'"),
        ({**SOUND, "roles": {"user": SOUND["roles"]["user"]}}, "roles lacks the key 'system'"),
        ({**SOUND, "document": {"open": "a"}}, "document lacks the key 'close'"),
    ],
)
def test_what_no_template_says_is_refused(tmp_path: Path, value: object, told: str) -> None:
    with pytest.raises(ManifestError, match=told) as caught:
        read_template(written(tmp_path, value))
    assert str(caught.value).startswith(str(tmp_path))


def test_a_stop_must_be_a_control_token_of_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"stops names '<\|end\|>', which is no control token"):
        check_template(written(tmp_path, SOUND), {"<|begin|>"})
