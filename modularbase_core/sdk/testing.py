"""What a pack author runs before publishing: is this directory a pack that will load?

Reads every file of it, the weights' values too, yet imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ManifestError, WeightsError
from modularbase_core.sdk.architecture import BaseArchitecture, RouterArchitecture
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.files import file_sha256
from modularbase_core.sdk.jsonfile import read_json
from modularbase_core.sdk.manifest import DATA_FILES, MANIFEST_FILE, ROUTING_FILE, WEIGHTS_FILE, Manifest
from modularbase_core.sdk.pack import GRAPH_SUFFIX, GRAPHS_FOLDER, Pack
from modularbase_core.sdk.parameters import (
    Shape,
    background_shapes,
    optional_routing_shapes,
    parameter_shapes,
    routing_shapes,
)
from modularbase_core.sdk.template import check_template
from modularbase_core.sdk.tensorfile import check_shapes, read_header
from modularbase_core.sdk.values import check_finite, read_rows

_TEXTS: Final = (".md", ".txt")
_DATA: Final = (".safetensors", ".json")
_PAPERS: Final = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "README")
_CODE: Final = (
    *(".py", ".pyc", ".so", ".pickle", ".pkl", ".joblib", ".dill"),
    *(".bin", ".pt", ".pth", ".ckpt", ".npy", ".npz", ".h5", ".keras", ".onnx"),
)
_TOKENIZER_LIMIT_BYTES: Final = 64 << 20
_UNIT_TOLERANCE: Final = 0.01  # int8 keys are that far off at most


def check_pack(directory: Path, *, store: Path | None = None, key_size: int | None = None) -> Manifest:
    """Check the pack in `directory` whole, and return its manifest.

    Its manifest; that the directory holds data alone, all of it listed and with the right digest; shapes and
    finiteness of all tensors; unit-length routing keys; tokenizer and examples. store: where downloaded files lie.
    key_size: of the router that it is meant for, if you know it. Raises ManifestError or WeightsError at the first
    fault, in one sentence.
    """
    pack = Pack(directory, store)
    manifest = pack.manifest
    _check_directory(directory, manifest)
    _check_digests(pack)
    network = manifest.network
    _check_tensors(pack.path(WEIGHTS_FILE), parameter_shapes(network))
    if manifest.type == "router":
        assert isinstance(network, RouterArchitecture)
        if pack.routing.exists():
            _check_routing(pack.routing, background_shapes(network.key_size))
    elif pack.routing.exists():
        _check_routing(pack.routing, routing_shapes(key_size), optional_routing_shapes(key_size))
    if isinstance(network, BaseArchitecture):
        control = _check_tokenizer(pack.tokenizer, network.vocabulary_size)
        if pack.template.exists():
            check_template(pack.template, control)
    if pack.examples.exists():
        read_examples(pack.examples)
    return manifest


def _check_directory(directory: Path, manifest: Manifest) -> None:
    """Refuse what is no data, and what the manifest does not tell of."""
    if manifest.type != "base" and (directory / "tokenizer").exists():
        raise ManifestError(
            f"{directory / 'tokenizer'} is there, but pack tokens are not supported by this version; remove it"
        )
    if manifest.type == "base" and (directory / ROUTING_FILE).exists():
        raise ManifestError(f"{directory / ROUTING_FILE} is there, but nothing is routed to a base; remove it")
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or name == MANIFEST_FILE:
            continue
        if path.parent == directory / GRAPHS_FOLDER and path.name.endswith(GRAPH_SUFFIX):
            continue  # made anew with each version of the compiler, which checks what it reads
        suffix = path.suffix.lower()
        if suffix in _CODE:
            raise ManifestError(
                f"{path} may run code when it is read, but a pack is data; keep weights in {WEIGHTS_FILE}, "
                "code outside the directory"
            )
        if suffix in _TEXTS or path.name in _PAPERS:
            continue
        if suffix not in _DATA:
            raise ManifestError(f"{path} is no file of a pack (safetensors, JSON, Markdown or text); remove it")
        if name not in manifest.files:
            remedy = "write the manifest again" if name in DATA_FILES else "remove it"
            raise ManifestError(f"{path} is not listed under files; {remedy}")


def _check_digests(pack: Pack) -> None:
    for name, digest in pack.manifest.files.items():
        path = pack.path(name)
        if not path.is_file():
            if name in pack.manifest.downloads:
                raise ManifestError(
                    f"{name} of pack {pack.id!r} is not downloaded yet, so it cannot be checked; fetch it"
                )
            raise ManifestError(f"{path} is missing, but the manifest lists it; restore or delist it")
        try:
            got = file_sha256(path)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        if got != digest:
            raise WeightsError(
                f"{path} has SHA-256 {got[:12]}..., but the manifest says {digest[:12]}...; "
                "install the pack again, or write its manifest again if you changed it"
            )


def _check_tensors(path: Path, expected: dict[str, Shape] | dict[str, tuple[int | None, ...]]) -> None:
    entries = read_header(path)
    check_shapes(path, entries, expected)
    check_finite(path, entries)


def _check_routing(
    path: Path, expected: dict[str, tuple[int | None, ...]], optional: dict[str, tuple[int | None, ...]] | None = None
) -> None:
    """Check the tensors, and that the rows that queries are compared with are unit vectors, as queries are."""
    entries = read_header(path)
    expected = {**expected, **{name: shape for name, shape in (optional or {}).items() if name in entries}}
    check_shapes(path, entries, expected)
    check_finite(path, entries)
    if "scale" in expected and (scale := read_rows(path, entries, "scale")[0][0]) <= 0:
        raise WeightsError(f"{path}: 'scale' is {scale:g}; it must be positive, or nearer messages would score lower")
    for name, shape in expected.items():
        for number, row in enumerate(read_rows(path, entries, name) if len(shape) == 2 else ()):
            length = sum(value * value for value in row) ** 0.5
            if abs(length - 1) > _UNIT_TOLERANCE:
                raise WeightsError(
                    f"{path}: row {number} of {name!r} has the length {length:.3g}, expected 1; divide it by its length"
                )


def _check_tokenizer(path: Path, vocabulary_size: int) -> set[str]:
    """Check the token ids; return the control tokens."""
    if not path.is_file():
        raise ManifestError(f"{path} is missing; a base brings its tokenizer")
    value = read_json(path, _TOKENIZER_LIMIT_BYTES, ManifestError)
    ids = _token_ids(value)
    if not ids or not all(type(number) is int and number >= 0 for number in ids):
        raise ManifestError(f"{path} is no tokenizer of the tokenizers library; save one with its `save`")
    if max(ids) >= vocabulary_size:
        raise ManifestError(
            f"{path} has token ids up to {max(ids)}, but the network's vocabulary_size is {vocabulary_size}; "
            "use the tokenizer that it was trained with"
        )
    special = (token.get("content") for token in value.get("added_tokens", []) if token.get("special") is True)
    return {name for name in special if isinstance(name, str)}


def _token_ids(value: Any) -> list[Any]:  # Any: whatever JSON held
    model = value.get("model") if isinstance(value, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = value.get("added_tokens", []) if isinstance(value, dict) else []
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        return []
    return [*vocabulary.values(), *(token.get("id") if isinstance(token, dict) else None for token in added)]
