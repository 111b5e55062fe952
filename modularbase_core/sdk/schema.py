"""The JSON Schema of manifest.json, for editors, other languages and whoever collects packs.

It is kept by hand beside `readers`; a test holds the two together. What it cannot say (one key against another)
`Manifest` checks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

SCHEMA_FILE: Final = Path(__file__).with_name("manifest.schema.json")


def manifest_schema() -> dict[str, Any]:  # Any: a JSON Schema
    """Return the schema: JSON Schema 2020-12, $id urn:modularbase:manifest:1."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema
