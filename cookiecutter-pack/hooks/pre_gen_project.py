"""Refuse answers that would render into files that do not load."""

import re
import sys

ID = r"[a-z0-9]+([_-][a-z0-9]+)*"
TEXT = r'[^"\\\x00-\x1f\x7f]+'
TEXT_TOLD = "use one line without double quotes and backslashes"
ID_TOLD = "use lower-case letters and digits, joined by - or _"
TAKEN = ("nano-base", "nano-router", "general_chat", "general", "chat")  # ids and aliases of the nano set

ANSWERS = (
    ("domain", {{ cookiecutter.domain | tojson }}, TEXT, TEXT_TOLD),
    ("display_name", {{ cookiecutter.display_name | tojson }}, TEXT, TEXT_TOLD),
    ("pack_id", {{ cookiecutter.pack_id | tojson }}, ID, ID_TOLD),
    ("alias", {{ cookiecutter.alias | tojson }}, ID, ID_TOLD),
    (
        "distribution",
        {{ cookiecutter.distribution | tojson }},
        r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?",
        "use letters and digits, joined by -, _ or .",
    ),
    (
        "module",
        {{ cookiecutter.module | tojson }},
        r"[a-z_][a-z0-9_]*",
        "use lower-case letters, digits and _, with no digit first",
    ),
    ("description", {{ cookiecutter.description | tojson }}, TEXT, TEXT_TOLD),
    (
        "languages",
        {{ cookiecutter.languages | tojson }},
        r" *[A-Za-z]+(-[A-Za-z0-9]+)*( *, *[A-Za-z]+(-[A-Za-z0-9]+)*)* *",
        "use language codes such as `en, zh`",
    ),
    ("author", {{ cookiecutter.author | tojson }}, TEXT, TEXT_TOLD),
)

for name, value, pattern, told in ANSWERS:
    if not re.fullmatch(pattern, value):
        sys.exit(f"{name} is {value!r}; {told}")
    if name in ("pack_id", "alias") and value in TAKEN:
        sys.exit(f"{name} {value!r} belongs to the nano set; choose another")
