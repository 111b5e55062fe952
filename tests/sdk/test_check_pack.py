import dataclasses
import json
import subprocess
import sys

import pytest
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack, write_tiny_set

from modularbase_core.errors import ManifestError, WeightsError
from modularbase_core.sdk.manifest import write_manifest
from modularbase_core.sdk.testing import check_pack


def test_every_pack_of_the_tiny_set_passes(tmp_path):
    for id, directory in write_tiny_set(tmp_path).items():
        assert check_pack(directory).id == id


@pytest.fixture
def python(tmp_path):
    return write_pack(tmp_path / "python", manifest("python_code", "domain", PACK))


def test_a_changed_file_is_told(python):
    path = python / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"model\.safetensors has SHA-256 .*, but the manifest says"):
        check_pack(python)


def test_a_missing_file_is_told(python):
    (python / "model.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"model\.safetensors is missing, but the manifest lists it"):
        check_pack(python)


def test_an_unlisted_file_is_told(python):
    value = json.loads((python / "manifest.json").read_text())
    del value["files"]["routing.safetensors"]
    (python / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ManifestError, match=r"routing\.safetensors is not listed under files"):
        check_pack(python)


def test_weights_of_another_architecture_are_told(python):
    write_manifest(python, manifest("python_code", "domain", dataclasses.replace(PACK, layers=2)))
    with pytest.raises(WeightsError, match=r"lacks the tensor 'experts\.layers\.1\.attention_norm\.weight'"):
        check_pack(python)


@pytest.mark.parametrize(("content", "told"), [("{", "is not JSON"), ("{}", "holds dict; expected a list")])
def test_examples_that_are_no_list_are_told(python, content, told):
    (python / "examples.json").write_text(content)
    write_manifest(python, manifest("python_code", "domain", PACK))
    with pytest.raises(ManifestError, match=told):
        check_pack(python)


def test_a_base_without_a_tokenizer_is_told(tmp_path):
    base = write_pack(tmp_path / "base", manifest("tiny-base", "base", BASE))
    (base / "tokenizer/tokenizer.json").unlink()
    write_manifest(base, manifest("tiny-base", "base", BASE))
    with pytest.raises(ManifestError, match=r"tokenizer\.json is missing; a base brings its tokenizer"):
        check_pack(base)


def test_checking_and_listing_packs_imports_neither_numpy_nor_torch_nor_tvm(tmp_path):
    router = write_pack(tmp_path / "router", manifest("tiny-router", "router", ROUTER))
    program = (
        "import sys; from pathlib import Path\n"
        "from modularbase_core.packs.catalog import discover\n"
        "from modularbase_core.sdk.testing import check_pack\n"
        "discover(); check_pack(Path(sys.argv[1]))\n"
        "print([name for name in ('numpy', 'torch', 'tvm', 'tvm_ffi', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(router)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
