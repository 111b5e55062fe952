import dataclasses
import json
from contextlib import suppress

import pytest
from drawing import EXAMPLE_OF_THE_DESIGN, EXAMPLE_OF_VERSIONS, manifests
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packs import BASE, PACK, ROUTER, manifest

from modularbase_core.errors import ManifestError
from modularbase_core.sdk.architecture import architecture_key, architecture_to_dict
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


ARCHITECTURE = architecture_to_dict(PACK)


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
        ({"files": {"manifest.json": "0" * 64}}, "files names 'manifest.json'"),
        ({"files": {"a/.b": "0" * 64}}, r"files names 'a/\.b'"),
        ({"files": {"/etc/passwd": "0" * 64}}, "files names '/etc/passwd'"),
        ({"files": {"a\\b": "0" * 64}}, "files names"),
        ({"files": {"tokenizer/tokens.json": "0" * 64}}, "but pack tokens are not supported by this version"),
        ({"downloads": {"a.json": "https://e.org/a"}, "files": {"b.json": "0" * 64}}, "which files does not; give its"),
        ({"downloads": {"a.json": "ftp://e.org/a"}}, r"downloads: a\.json is 'ftp://e\.org/a'; use an http or https"),
        ({"downloads": {"a.json": "file:///etc/passwd"}}, "use an http or https address"),
        ({"downloads": {"a.json": "https://me:secret@e.org/a"}}, "use an http or https address without user or pass"),
        ({"downloads": {"a.json": "https://e.org/a b"}}, "use an http or https address"),
        ({"downloads": {"a.json": 3}}, r"downloads: a\.json is 3; expected a string"),
        ({"name": "red \x1b[31m"}, r"name is 'red \\x1b\[31m'; use at most 200 characters, none of them control"),
        ({"name": "n" * 201}, "use at most 200 characters"),
        ({"description": "a\rb"}, "none of them control characters but tabs and line ends"),
        ({"languages": ["EN"]}, "languages is 'EN'; use a code like en, zh-Hans or pt-BR"),
        ({"languages": ["english"]}, "languages is 'english'; use a code like"),
        ({"fallback": ["Chat"]}, "fallback is 'Chat'; use lower-case letters"),
        ({"fallback": ["python_code"]}, "fallback names 'python_code', the pack itself; remove it"),
        ({"dependencies": [{"id": "python_code"}]}, "dependencies names 'python_code', the pack itself"),
        ({"layers": 2}, "layers is 2, but its architecture has 1; write the manifest again"),
        ({"hidden_size": 1024}, "hidden_size is 1024, but its architecture has 64"),
        ({"architecture_key": "0" * 16}, "architecture_key is '0000000000000000', but its architecture has '"),
        ({"layers": 1.0}, "layers is 1.0; expected a whole number from 1 to 1024"),
        ({"layers": True}, "layers is True; expected a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0; expected a whole number"),
        ({"size_mb": True}, "size_mb is True; expected a number"),
        ({"schema": True}, "schema is True; expected 1"),
        ({"version": "1" * 101}, "use one like 1.0.0"),
        ({"architecture": {**ARCHITECTURE, "layers": 10**9}}, "layers is 1000000000; the largest is 512"),
        (
            {"architecture": {**ARCHITECTURE, "blocks": {**ARCHITECTURE["blocks"], "rope_theta": -1}}},
            "rope_theta is -1",
        ),
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


SOUND = b'{"id": "a", "version": "1.0"}'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "a manifest is a JSON object, not list"),
        (b"3", "a manifest is a JSON object, not int"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"id": "a", "version": ' + b"[" * 700 + b"]" * 700 + b"}", "version is "),
        (b"\xff\xfe", r"is not JSON \(it is not UTF-8 at byte 0\)"),
        (SOUND.decode().encode("utf-16"), r"is not JSON \(it is not UTF-8 at byte 0\)"),
        (b"\xef\xbb\xbf" + SOUND, r"is not JSON \(it begins with a byte order mark\)"),
        (b'{"id": "a", "id": "b", "version": "1.0"}', r"is not JSON \(the key 'id' stands there twice\)"),
        (b'{"id": "a", "version": "1.0", "size_mb": NaN}', r"is not JSON \(NaN is no number\)"),
        (b'{"id": "a", "version": "1.0", "size_mb": -Infinity}', r"is not JSON \(-Infinity is no number\)"),
        (b'{"id": "a", "version": "1.0", "size_mb": 1e999}', r"is not JSON \('1e999' is too large a number\)"),
        (b'{"id": "a", "version": "1.0", "layers": 1' + b"0" * 5000 + b"}", "is too large a number"),
        (b'{"id": "a", "version": "1.0", "name": "\\ud800"}', r"is not JSON \(a string holds half a surrogate pair\)"),
        (SOUND + b" " * (1 << 20), "is larger than 1 MiB; shorten it"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, told):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=told) as caught:
        Manifest.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@settings(max_examples=400)
@given(manifests(), st.data())
def test_a_file_with_any_bytes_is_read_or_refused(tmp_path_factory, described, data):
    content = bytearray(json.dumps(described.to_dict(), ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"{", b"]", b'"', b"NaN", b"1e999", b"\\ud800", b"9" * 30])
        )
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with suppress(ManifestError):
        read = Manifest.read(path)
        assert Manifest.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def test_a_directory_is_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match=r"cannot be read \(Is a directory\); check its permissions"):
        Manifest.read(tmp_path)


def test_what_is_told_of_a_huge_value_is_short(tmp_path):
    for changes in ({"id": "x" * 500_000}, {"x" * 500_000: 1}, {"architecture": {"kind": ["x" * 500_000]}}):
        (tmp_path / "manifest.json").write_text(json.dumps(plain(**changes)))
        with pytest.raises(ManifestError) as caught:
            Manifest.read(tmp_path / "manifest.json")
        assert len(str(caught.value)) < 1000


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


def test_writing_tells_of_the_network_what_a_listing_shows(tmp_path):
    written = [
        write_manifest(tmp_path, one)
        for one in (
            manifest("a", "base", BASE),
            manifest("a", "domain", dataclasses.replace(PACK, layers=3)),
            manifest("a", "router", ROUTER),
            Manifest(id="a", version="1"),
        )
    ]
    assert [(one.layers, one.hidden_size) for one in written] == [(2, 64), (3, 64), (None, 32), (None, None)]
    assert [one.architecture_key for one in written[:3]] == [architecture_key(one.network) for one in written[:3]]
    with pytest.raises(ManifestError, match="layers is 1, but a router has none"):
        manifest("a", "router", ROUTER, layers=1)


def test_writing_keeps_what_is_told_of_files_to_be_downloaded(tmp_path):
    url, digest = {"model.safetensors": "https://example.org/w"}, {"model.safetensors": "0" * 64}
    (tmp_path / "examples.json").write_text("[]")
    described = Manifest(id="a", version="1", files=digest, downloads=url, size_mb=200)
    written = write_manifest(tmp_path, described)
    assert written.files == {**digest, "examples.json": file_sha256(tmp_path / "examples.json")}
    assert written.size_mb == 200
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2_000_000)
    assert write_manifest(tmp_path, described).size_mb == 2.0


def test_a_manifest_made_by_hand_is_held_to_what_a_file_is():
    with pytest.raises(ManifestError, match="id is 'Python Code'"):
        Manifest(id="Python Code", version="1.0")
    with pytest.raises(ManifestError, match=r"dependencies\.version of 'a' is 'newest'"):
        Manifest(id="b", version="1.0", dependencies=(Dependency("a", "newest"),))


def test_equal_networks_have_one_key_however_they_are_written():
    blocks = {**ARCHITECTURE["blocks"], "rope_theta": 10000}
    read = Manifest.from_dict(plain(architecture={**ARCHITECTURE, "blocks": blocks}))
    assert architecture_key(read.network) == architecture_key(PACK)


def test_the_file_reads_in_the_order_that_people_look_for(tmp_path):
    write_manifest(tmp_path, manifest("tiny-base", "base", BASE))
    value = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert list(value)[:5] == ["schema", "id", "name", "version", "type"]
    assert value["architecture"] == json.loads(json.dumps(architecture_to_dict(BASE)))
