"""Cases to evaluate on, made where a test needs them."""

from modularbase_core.evaluate.cases import Case
from modularbase_core.text.template import Message
from modularbase_core.train.readers.record import Record


def question(prompt, response="", domain="tests", labelled=False, **value):
    """A case that asks something."""
    said = [("user", prompt)] + ([("assistant", response)] if response else [])
    record = Record(None, tuple({"role": role, "content": text} for role, text in said), "", "")
    return Case("here", domain, labelled, record, (Message("user", prompt),), response, prompt, value)


def text(content, domain="tests"):
    """A case of plain text."""
    return Case("here", domain, False, Record(content, (), "", ""), (), "", content, {})
