import pytest
from tiny_packs import PACK, manifest, write_pack

from modularbase_core.errors import ManifestError
from modularbase_core.sdk import Pack


@pytest.fixture
def python(tmp_path):
    return write_pack(tmp_path / "python", manifest("python_code", "domain", PACK))


def test_a_file_lies_in_the_directory_or_else_in_the_store_under_its_digest(python, tmp_path):
    pack = Pack(python, tmp_path / "weights")
    stored = tmp_path / "weights" / pack.manifest.files["model.safetensors"]
    assert pack.weights == python / "model.safetensors"
    pack.weights.unlink()
    assert (pack.weights, pack.path("model.safetensors")) == (stored, stored)
    assert pack.routing == python / "routing.safetensors"


def test_what_the_manifest_does_not_list_is_looked_for_in_the_directory_alone(python, tmp_path):
    assert Pack(python, tmp_path / "weights").tokenizer == python / "tokenizer/tokenizer.json"


def test_without_a_store_no_manifest_is_read_to_find_a_file(tmp_path):
    assert Pack(tmp_path).weights == tmp_path / "model.safetensors"
    with pytest.raises(ManifestError, match=r"manifest\.json is missing"):
        _ = Pack(tmp_path, tmp_path / "weights").weights


def test_packs_are_equal_when_their_directories_are(tmp_path):
    assert Pack(tmp_path) == Pack(tmp_path, tmp_path / "weights")
    assert Pack(tmp_path) != Pack(tmp_path / "other")
