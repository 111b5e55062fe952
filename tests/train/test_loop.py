from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modularbase_core.errors import DataError
from modularbase_core.train.loop import Batch, Schedule, train


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def batches(step: int) -> Iterator[Batch]:
    while True:
        ids = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        yield ids, torch.ones_like(ids)
        step += 1


def loss_of(model: nn.Module) -> object:
    def loss(ids: Tensor, learn: Tensor) -> Tensor:
        return (model(ids) - ids).square().mean()

    return loss


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model = network()
    before = loss_of(model)(*next(batches(1000)))
    train(model, loss_of(model), batches, Schedule(steps=60, warmup_steps=2), tmp_path / "c.pt", quiet=True)
    assert loss_of(model)(*next(batches(1000))) < 0.5 * before


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, schedule = network(), Schedule(steps=20, warmup_steps=2)
    train(whole, loss_of(whole), batches, schedule, tmp_path / "whole.pt", quiet=True)

    def interrupted(step: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(step)):
            if step + number == 9:
                raise KeyboardInterrupt
            yield batch

    first = network()
    with pytest.raises(KeyboardInterrupt):
        train(first, loss_of(first), interrupted, schedule, tmp_path / "cut.pt", quiet=True)
    second = network()
    train(second, loss_of(second), batches, schedule, tmp_path / "cut.pt", quiet=True)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_interrupted_between_muon_and_adamw_resumes_from_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, schedule = network(), Schedule(steps=20, warmup_steps=2)
    train(whole, loss_of(whole), batches, schedule, tmp_path / "whole.pt", quiet=True)
    adamw_step, count = torch.optim.AdamW.step, 0

    def interrupted(optimiser: torch.optim.AdamW, *given: object) -> object:
        nonlocal count
        count += 1
        if count == 10:
            raise KeyboardInterrupt
        return adamw_step(optimiser, *given)

    first, checkpoint = network(), tmp_path / "cut.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(first, loss_of(first), batches, schedule, checkpoint, quiet=True, save_seconds=0.0)
    assert torch.load(checkpoint, weights_only=True)["step"] == 9
    second = network()
    train(second, loss_of(second), batches, schedule, checkpoint, quiet=True)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    schedule, wider = Schedule(steps=2, warmup_steps=1), nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8))
    train(wider, loss_of(wider), batches, schedule, tmp_path / "c.pt", quiet=True)
    model = network()
    with pytest.raises(DataError, match=r"c\.pt was trained with another architecture; .*another runs folder"):
        train(model, loss_of(model), batches, schedule, tmp_path / "c.pt", quiet=True)


def test_the_rate_warms_up_holds_and_decays() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, decay_share=0.5)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1.0
    assert factors[99] == pytest.approx(0.02)
    assert sorted(factors[50:], reverse=True) == factors[50:]
