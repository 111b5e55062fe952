"""Refuse answers that would render into files that do not load.

The rules of a pack's names stand here alone: `modularbase pack init` reads them from this file, unrendered.
"""

import json
import keyword
import re
import sys

TAKEN = ("nano-base", "nano-router", "general_chat", "general", "chat")  # ids and aliases of the nano set
DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}
FOLDERS = {"build", "data", "dist", "recipes", "tests"}  # of the project, beside the module
OURS = {"modularbase", "modularbase-nano", "modularbase-compiler", "modularbase-core"}
MARKS = tuple("{" + second for second in ("{", "%", "#"))  # of the template language

ID = r"[a-z0-9]+([_-][a-z0-9]+)*"
ID_TOLD = "use lower-case letters and digits, joined by - or _"
LANGUAGE = r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?(-[a-z0-9]{5,8})*"
# neither what ends a string or a line in TOML, JSON or Python, nor what turns text round or is half a character
UNPRINTABLE = '["\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
TEXT_TOLD = "use one line of text without double quotes and backslashes"

# name: (what it is called, longest, pattern, what to do)
RULES = {
    "domain": ("the domain", 80, None, TEXT_TOLD),
    "display_name": ("the name", 100, None, TEXT_TOLD),
    "pack_id": ("the id", 50, ID, ID_TOLD),
    "alias": ("the alias", 50, ID, ID_TOLD),
    "distribution": (
        "the distribution's name",
        80,
        "[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?",
        "use letters and digits, joined by -, _ or .",
    ),
    "module": (
        "the module's name",
        80,
        "[a-z_][a-z0-9_]*",
        "use lower-case letters, digits and _, with no digit first",
    ),
    "description": ("the description", 400, None, TEXT_TOLD),
    "languages": (
        "the list of languages",
        200,
        f" *{LANGUAGE} *(, *{LANGUAGE} *)*",
        "use language codes such as `en, zh-Hans`",
    ),
    "author": ("the author", 100, None, TEXT_TOLD),
}


def problem(answers):
    """Say in one sentence what is wrong with these answers; return nothing where all is well."""
    for name, (called, longest, pattern, told) in RULES.items():
        if name in answers:
            value = answers[name]
            wrong = _misspelt(value, longest, pattern, told) or _reserved(name, value)
            if wrong:
                return f"{called} is {_shown(value)}; {wrong}"
    return ""


def _misspelt(value, longest, pattern, told):
    if pattern is None:
        if any(mark in value for mark in MARKS):
            return "leave out the brackets of the template language"
        if not value.strip() or re.search(UNPRINTABLE, value):
            return told
    elif not re.fullmatch(pattern, value):
        return told
    return f"use at most {longest} characters" if len(value) > longest else ""


def _reserved(name, value):
    if name in ("pack_id", "alias") and value in TAKEN:
        return "it belongs to the nano set, choose another"
    if name in ("pack_id", "module") and value in {word.lower() for word in keyword.kwlist}:
        return "it is a reserved word of Python, choose another"
    if name in ("pack_id", "module", "distribution") and value.lower().split(".")[0] in DEVICES:
        return "Windows takes no file of that name, choose another"
    if name == "module" and (value in FOLDERS or value in getattr(sys, "stdlib_module_names", ())):
        return "another folder or module is called so, choose another"
    if name in ("module", "distribution") and re.sub("[._-]+", "-", value.lower()) in OURS:
        return "it belongs to ModularBase, choose another"
    return ""


def _shown(value):
    return repr(value) if len(value) <= 60 else f"{value[:40]!r}... ({len(value)} characters)"


if __name__ == "__main__":
    told = problem(json.loads(r"""{{ cookiecutter | tojson }}"""))
    if told:
        sys.exit(told)
