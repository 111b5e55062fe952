import json
import re

import pytest
from drawing import EXAMPLE_OF_THE_DESIGN, EXAMPLE_OF_VERSIONS, manifests
from hypothesis import given
from tiny_packs import BASE, PACK, ROUTER, manifest

from modularbase_core.errors import ManifestError
from modularbase_core.sdk.architecture import architecture_to_dict
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.manifest import Dependency, Manifest, write_manifest


def test_the_manifest_of_the_design_is_read_as_it_stands(tmp_path):
    (tmp_path / "manifest.json").write_text(EXAMPLE_OF_THE_DESIGN, encoding="utf-8")
    read = Manifest.read(tmp_path / "manifest.json")
    assert (read.id, read.name, read.version, read.type) == ("python_code", "Python代码包", "1.0.0", "domain")
    assert (read.size_mb, read.layers, read.hidden_size) == (200, 6, 1024)
    assert read.keywords == ("python", "代码", "编程")
    assert (read.schema, read.base, read.architecture, read.dependencies) == (1, None, None, ())
    with pytest.raises(ManifestError, match="pack 'python_code' describes no network, so it cannot run; add its arch"):
        _ = read.network


def test_the_manifest_of_versions_is_read_as_it_stands(tmp_path):
    (tmp_path / "manifest.json").write_text(EXAMPLE_OF_VERSIONS, encoding="utf-8")
    read = Manifest.read(tmp_path / "manifest.json")
    assert (read.id, read.name, read.type) == ("python_code", "python_code", "domain")
    assert read.dependencies == (Dependency("reasoning", ">=1.1"),)
    admitted = ["1.0", "1.0.7", "1.1", "1.2.3", "1.3", "0.9", "2.0"]
    assert [version for version in admitted if read.admits_base(version)] == ["1.0", "1.0.7", "1.1", "1.2.3"]


@given(manifests())
def test_a_manifest_survives_json(described):
    assert Manifest.from_dict(json.loads(json.dumps(described.to_dict()))) == described


def plain(**changes):
    value = manifest("python_code", "domain", PACK).to_dict()
    value.update(changes)
    return {key: item for key, item in value.items() if item is not ...}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"licens": "MIT"}, r"unknown key 'licens' \(did you mean 'licence'\?\); rename or remove it"),
        ({"id": ...}, "lacks the key 'id'; add it"),
        ({"schema": 2}, "schema is 2, this version reads 1; upgrade modularbase"),
        ({"schema": "1"}, "schema is '1'; expected 1"),
        ({"id": "Python Code"}, "id is 'Python Code'; use lower-case letters"),
        ({"aliases": ["a", 3]}, "aliases is 3; expected a string"),
        ({"keywords": "python"}, "keywords is 'python'; expected a list of strings"),
        ({"version": "new"}, r"version is 'new'; use one like 1\.0\.0"),
        ({"type": "pack"}, "type is 'pack'; use one of base, router, system, domain"),
        ({"type": "router"}, "architecture.kind is 'pack', but type 'router' needs 'router'"),
        ({"type": "base", "architecture": ...}, "base is 'tiny-base', but a base has no base; correct base or type"),
        ({"base_compatibility": ["new"]}, "base_compatibility is 'new'; use a version like 1.0 or a range like"),
        ({"dependencies": [{"id": "a", "versoin": "1"}]}, r"unknown key 'versoin' \(did you mean 'version'\?\)"),
        ({"dependencies": [{"version": ">=1"}]}, "dependencies has an entry without id"),
        ({"dependencies": ["reasoning"]}, r"dependencies is \['reasoning'\]; expected a list of objects"),
        (
            {"dependencies": [{"id": "a", "version": "newest"}]},
            "dependencies.version of 'a' is 'newest'; use a range like",
        ),
        ({"size_mb": -1}, "size_mb is -1; expected a number that is not negative"),
        ({"files": {"../secret": "0" * 64}}, r"files names '\.\./secret'; use a path of a file inside the pack"),
        ({"files": {"model.safetensors": "abc"}}, "files: model.safetensors is 'abc'; use a SHA-256 of 64 hex digits"),
        ({"files": []}, r"files is \[\]; expected an object"),
        ({"architecture": "pack"}, "architecture is 'pack'; expected an object"),
        ({"architecture": {"kind": "pakc"}}, r"architecture\.kind is 'pakc'; use one of base, pack, router"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence_with_the_file(tmp_path, changes, told):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(plain(**changes)))
    with pytest.raises(ManifestError, match=told) as caught:
        Manifest.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=re.escape(str(tmp_path / "manifest.json"))):
        Manifest.read(tmp_path / "manifest.json")


def test_a_missing_manifest_is_told(tmp_path):
    with pytest.raises(ManifestError, match=r"manifest\.json is missing; install the pack again"):
        Manifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("wanted", "version", "admitted"),
    [
        (["1.0"], "1.0.3", True),
        (["1.0"], "1.1.0", False),
        (["1.0", "1.1"], "1.1.0", True),
        (["1.0"], "10.0", False),
        ([">=1.1,<2"], "1.4", True),
        ([">=1.1,<2"], "2.0", False),
        ([], "7", True),
    ],
)
def test_base_compatibility_takes_prefixes_and_specifiers(wanted, version, admitted):
    assert Manifest.from_dict(plain(base_compatibility=wanted)).admits_base(version) is admitted


def test_writing_adds_digests_and_size_of_the_data_files_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2_000_000)
    (tmp_path / "__init__.py").write_text("")
    written = write_manifest(tmp_path, manifest("tiny-router", "router", ROUTER))
    assert written.files == {"model.safetensors": file_sha256(tmp_path / "model.safetensors")}
    assert written.size_mb == 2.0
    assert Manifest.read(tmp_path / "manifest.json") == written


def test_the_file_reads_in_the_order_that_people_look_for(tmp_path):
    write_manifest(tmp_path, manifest("tiny-base", "base", BASE))
    value = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert list(value)[:5] == ["schema", "id", "name", "version", "type"]
    assert value["architecture"] == json.loads(json.dumps(architecture_to_dict(BASE)))
