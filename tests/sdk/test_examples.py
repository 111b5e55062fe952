import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.errors import ManifestError
from modularbase_core.sdk.examples import Example, read_examples


def test_examples_are_read_under_both_names(tmp_path):
    path = tmp_path / "examples.json"
    written = [{"prompt": "写个\n快速排序"}, {"prompt": "hi", "response": "hello"}, {"user": "a", "assistant": "b"}]
    path.write_text(json.dumps(written), encoding="utf-8")
    assert read_examples(path) == (Example("写个\n快速排序"), Example("hi", "hello"), Example("a", "b"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("{}", "holds dict; expected a list of examples"),
        ("[]", "holds no example; add one or remove the file"),
        ('["hi"]', "example 1 is str; expected an object with a prompt"),
        ('[{"prompt": "a"}, {}]', "example 2 has no prompt; write what a user would ask"),
        ('[{"prompt": " \\n"}]', "example 1 has no prompt"),
        ('[{"response": "a"}]', "example 1 has no prompt"),
        ('[{"prompt": 3}]', "example 1: prompt is int; expected a string"),
        ('[{"prompt": "a", "response": null}]', "example 1: response is NoneType; expected a string"),
        ('[{"promt": "a"}]', r"example 1 has the unknown key 'promt' \(did you mean 'prompt'\?\); rename or remove it"),
        ('[{"prompt": "a", "user": "b"}]', "example 1 gives its prompt twice, as 'user' too; remove one"),
        ('[{"prompt": "a", "prompt": "b"}]', "the key 'prompt' stands there twice"),
        ('[{"prompt": "\\udc00"}]', "a string holds half a surrogate pair"),
    ],
)
def test_what_is_no_example_is_told_with_its_number(tmp_path, content, told):
    path = tmp_path / "examples.json"
    path.write_text(content)
    with pytest.raises(ManifestError, match=told) as caught:
        read_examples(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ManifestError, match=r"examples\.json is missing"):
        read_examples(tmp_path / "examples.json")


keys = st.sampled_from(["prompt", "response", "user", "assistant", "x"])


@given(st.lists(st.dictionaries(keys, st.text(max_size=3) | st.none(), max_size=3), max_size=3))
def test_any_list_is_read_whole_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "examples.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        read = read_examples(path)
    except ManifestError:
        return
    prompts = [item.get("prompt", item.get("user")) for item in value]
    assert [one.prompt for one in read] == prompts
    assert all(prompt.strip() for prompt in prompts)
