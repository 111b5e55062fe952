"""What an evaluation found, as one JSON document: with what, on what, how, and every figure.

Written whole or not at all, and read again to be compared (`forgetting`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from importlib_metadata import version

from modularbase_core.config import EngineConfig
from modularbase_core.errors import DataError
from modularbase_core.evaluate.cases import Source
from modularbase_core.evaluate.run import Results
from modularbase_core.evaluate.selection import Selection
from modularbase_core.evaluate.settings import EvaluationSettings
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.packs.resolve import Lineup
from modularbase_core.sdk.files import file_sha256, write_atomically
from modularbase_core.sdk.manifest import WEIGHTS_FILE

FORMAT: Final = 1
"""Of the document; raised when an older reader would misread it."""


# Any: plain JSON values, here and below
def document(
    lineup: Lineup,
    config: EngineConfig,
    sources: Sequence[Source],
    rows: Sequence[Selection],
    settings: EvaluationSettings,
    results: Results,
) -> dict[str, Any]:
    """Gather all that there is to tell about an evaluation."""
    return {
        "format": FORMAT,
        "modularbase": version("modularbase"),
        "packs": [_pack(one) for one in (lineup.base, lineup.router, *lineup.routable)],
        "files": [asdict(one) for one in sources],
        "rows": {row.name: list(row.packs) for row in rows},
        "settings": {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
            "threshold": config.threshold,
            "packs_per_turn": config.packs_per_turn,
            "fusion": config.fusion,
            "contradiction": config.contradiction,
        },
        "metrics": results.metrics,
        "seconds": results.seconds,
        "notes": results.notes,
    }


def read_document(path: Path) -> dict[str, Any]:
    """Read a document that an evaluation wrote; raises DataError, one sentence that begins with `path`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file that eval wrote") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON; name a file that `modularbase eval --json` or --out wrote") from error
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict) or "format" not in value:
        raise DataError(f"{path} is no evaluation; name a file that `modularbase eval --json` or --out wrote")
    if value["format"] != FORMAT:
        raise DataError(f"{path} has the format {value['format']!r} but {FORMAT} is read; evaluate again")
    return value


def write_report(folder: Path, described: dict[str, Any], answers: Sequence[dict[str, Any]]) -> list[Path]:
    """Write eval.json and, where answers were generated, answers.jsonl into `folder`; return the files.

    Raises DataError where that cannot be done.
    """
    texts = {"eval.json": json.dumps(described, ensure_ascii=False, indent=2) + "\n"}
    if answers:
        texts["answers.jsonl"] = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers)
    return [write_text(folder / name, text) for name, text in texts.items()]


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; raises DataError."""
    try:
        write_atomically(path, [text.encode(errors="replace")])
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); name another place") from error
    return path


def _pack(one: InstalledPack) -> dict[str, Any]:
    weights = one.pack.path(WEIGHTS_FILE)
    digest = one.manifest.files.get(WEIGHTS_FILE) or (file_sha256(weights) if weights.is_file() else None)
    return {
        "id": one.id,
        "version": one.manifest.version,
        "type": one.manifest.type,
        "distribution": one.distribution,
        "weights_sha256": digest,
    }
