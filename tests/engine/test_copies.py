"""What a decode step of compiled programs copies on the CPU: indexes and a token in, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import fed, new_sequence, random_tokens
from numpy.typing import NDArray

from modularbase_core.context.hot import HotPages
from modularbase_core.device.executable import BoundProgram, Device
from modularbase_core.device.tensor import Tensor
from modularbase_core.host import Parts
from modularbase_core.turn.route import force

PACK = "python_code"


def address(tensor: Tensor) -> int:
    """Return where numpy, TVM and torch find a tensor."""
    (found,) = {tensor.numpy().ctypes.data, tensor.address, torch.from_dlpack(tensor.handle).data_ptr()}
    return found


def test_a_step_copies_indexes_alone_and_hands_logits_on_where_they_are(
    parts_of: Callable[..., Parts], tiny_packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(tiny_packs)
    engine, sequence = parts.engine(), new_sequence(parts)
    fed(engine, sequence, random_tokens(40), PACK, [40])
    written: list[int] = []
    inputs: set[int] = set()
    results: list[int] = []
    write, call, wrap = Tensor.write, BoundProgram.__call__, Device.wrap

    def counted(self: Tensor, values: NDArray[np.generic]) -> None:
        written.append(values.nbytes)
        write(self, values)

    def called(self: BoundProgram, *given: Tensor) -> Tensor:
        inputs.update(map(address, given))
        return call(self, *given)

    def wrapped(self: Device, handle: object) -> Tensor:
        results.append(address(made := wrap(self, handle)))
        return made

    monkeypatch.setattr(Tensor, "write", counted)
    monkeypatch.setattr(BoundProgram, "__call__", called)
    monkeypatch.setattr(Device, "wrap", wrapped)
    with engine.slots.hold(force([PACK]).ids) as slots:
        placed = {slot.pack_id: slot.content for slot in slots}
        logits = engine.decoding.step([sequence], [7], placed)  # type: ignore[arg-type]
    hot: HotPages = parts._hot
    pages = {address(one) for one in (*hot.buffers, slots[0].content.pages)}  # type: ignore[union-attr]
    assert pages <= inputs  # every pool is given as it is
    assert max(written) <= 64  # a token, or a list of at most 16 pages; never a row of hidden states
    assert len(results) == 3  # understanding, pack, fusion
    assert results[0] in inputs  # what the base makes of a token is what the pack reads
    assert results[1] in inputs  # and a single pack's output what fusion reads
    assert logits.ctypes.data == results[2]
