"""The hot tier: what the base remembers of its sequences at full precision, in pages on the device.

One page id stands for the same 16 tokens in three buffers: hidden states at the adapter boundary,
understanding keys and values, fusion keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

from modularbase_core.context.codec import PageValues
from modularbase_core.context.pool import PagePool
from modularbase_core.device.executable import Device, Tensor
from modularbase_core.device.metadata import ArtefactMeta, InputMeta


class HotPages:
    """Buffers of `page_count` pages for the base that `meta` describes."""

    def __init__(self, meta: ArtefactMeta, device: Device, page_count: int) -> None:
        self.pool = PagePool("hot context", page_count)
        self.hidden: Tensor = make_pages(_input(meta, "understand", "hidden_pages"), device, page_count)
        self.understanding: Tensor = make_pages(_input(meta, "understand", "pages"), device, page_count)
        self.fusion: Tensor = make_pages(_input(meta, "fuse", "pages"), device, page_count)

    @property
    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, understanding, fusion."""
        return self.hidden, self.understanding, self.fusion

    def read(self, page_ids: Sequence[int]) -> PageValues:
        """Copy the contents of pages: each array with a leading axis of len(page_ids)."""
        return PageValues(*(buffer.read_rows(page_ids) for buffer in self.buffers))

    def write(self, page_id: int, values: PageValues) -> None:
        """Copy one page's contents in."""
        for buffer, value in zip(self.buffers, (values.hidden, values.understanding, values.fusion), strict=True):
            buffer.write_row(page_id, value)

    def copy_understood(self, source: int, target: int) -> None:
        """Copy of one page to another all that does not depend on the route; what fusion holds there stays."""
        for buffer in (self.hidden, self.understanding):
            buffer.copy_row(source, target)

    @staticmethod
    def page_bytes(meta: ArtefactMeta) -> int:
        """Return the bytes of one page in all three buffers."""
        wanted = (("understand", "hidden_pages"), ("understand", "pages"), ("fuse", "pages"))
        return sum(bytes_per_page(_input(meta, program, name)) for program, name in wanted)


def make_pages(page: InputMeta, device: Device, page_count: int) -> Tensor:
    """Allocate a buffer of `page_count` pages for a program's input of shape [P, ...]."""
    return device.tensor(*pages_form(page, page_count))


def pages_form(page: InputMeta, page_count: int) -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype of such a buffer."""
    return (page_count, *_fixed(page)), page.dtype


def bytes_per_page(page: InputMeta) -> int:
    """Return the bytes of one page of a program's input of shape [P, ...]."""
    size = {"float32": 4, "float16": 2}[page.dtype]
    for length in _fixed(page):
        size *= length
    return size


def _fixed(page: InputMeta) -> tuple[int, ...]:
    assert page.shape[0] == "P"
    return tuple(int(length) for length in page.shape[1:])


def _input(meta: ArtefactMeta, program: str, name: str) -> InputMeta:
    return next(item for item in meta.programs[program].inputs if item.name == name)
