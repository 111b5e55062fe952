"""Passes in bf16, fp16 and fp32: what they agree on, and how fp16 gets by with what it holds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from walking import batches, network, same

from modularbase_core.errors import TrainingError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.loop import Settings, train
from modularbase_core.train.schedule import Schedule

FP16 = Settings(precision="fp16", device="cpu")


def language() -> Whole:
    torch.manual_seed(0)
    blocks = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
    base = Base(BaseArchitecture(blocks=blocks, vocabulary_size=300, understanding_layers=1, fusion_layers=1))
    return Whole(base, Pack(PackArchitecture(base_hidden_size=64, blocks=blocks, layers=1)), 0, frozen_base=False)


def text() -> Tensor:
    return torch.randint(1, 300, (2, 41), generator=torch.Generator().manual_seed(1))


def test_the_loss_in_fp32_is_cross_entropy_and_so_are_its_gradients() -> None:
    model, ids = language(), text()
    Loss(model, compiled=False, precision="fp32")(ids, torch.ones_like(ids, dtype=torch.bool)).backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    place = Windows(2)
    hidden = model.base.understand(ids[:, :-1].flatten(), place)
    logits = model.base.fuse(model.pack(hidden, place), place, torch.arange(80))
    functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    for one, other in zip(got, model.parameters(), strict=True):
        assert other.grad is not None
        assert torch.allclose(one, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.05), ("fp16", 0.01)])
def test_gradients_in_half_the_bits_are_those_of_fp32(precision: str, share: float) -> None:
    found = []
    for form, scale in (("fp32", 1.0), (precision, 65536.0 if precision == "fp16" else 1.0)):
        model, ids = language(), text()
        (Loss(model, compiled=False, precision=form)(ids, torch.ones_like(ids, dtype=torch.bool)) * scale).backward()
        found.append([p.grad / scale for p in model.parameters() if p.grad is not None])
    for exact, half in zip(*found, strict=True):
        assert (exact - half).norm() < share * exact.norm()


class Overflowing:
    """A loss whose gradient passes fp16, where it is `size` times the scale; in some steps."""

    def __init__(self, model: nn.Module, size: float, steps: range) -> None:
        self._model, self._size, self._steps, self._calls = model, size, steps, 0

    def __call__(self, ids: Tensor, learn: Tensor) -> Tensor:
        size = self._size if self._calls in self._steps else 0.01
        self._calls += 1
        half = (self._model(ids).mean() * size).half()  # the slope of `half` is fp16: at most 65504
        return half.float() * 1.0


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halves(tmp_path: Path) -> None:
    model, start, checkpoint = network(), network(), tmp_path / "c.pt"
    loss = Overflowing(model, 1.0, range(3))  # 65536 overflows, and half of it does not
    train(model, loss, batches, Schedule(steps=1), checkpoint, settings=FP16, quiet=True)
    state = torch.load(checkpoint, weights_only=True)
    assert (state["step"], state["scaler"]["scale"]) == (1, 32768.0)
    assert same(model, start)
    train(model, loss, batches, Schedule(steps=2), checkpoint, settings=FP16, quiet=True)
    assert torch.load(checkpoint, weights_only=True)["scaler"]["scale"] == 32768.0
    assert not same(model, start)
    assert all(p.isfinite().all() for p in model.parameters())


def test_gradients_that_overflow_at_every_scale_end_the_run(tmp_path: Path) -> None:
    model = network()

    def loss(ids: Tensor, learn: Tensor) -> Tensor:
        inner = (model(ids).mean() * 1e-6).half()
        return (inner * 60000.0).float() * 1000.0  # of `inner`, 6e7

    with pytest.raises(TrainingError, match=r"step 17 of 40: gradients overflow fp16 however little .*precision bf16"):
        train(model, loss, batches, Schedule(steps=40), tmp_path / "c.pt", settings=FP16, quiet=True)


def test_a_language_model_learns_in_fp16(tmp_path: Path) -> None:
    model, ids = language(), text()
    batch = ids, torch.ones_like(ids, dtype=torch.bool)
    loss = Loss(model, compiled=False, precision="fp16")
    before = loss(*batch).item()
    schedule = Schedule(steps=12, warmup_steps=2)
    train(model, loss, lambda step: [batch] * 12, schedule, tmp_path / "c.pt", settings=FP16, quiet=True)
    assert loss(*batch).item() < 0.7 * before
