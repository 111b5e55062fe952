"""The walk: what a step is, how it may end, and what is kept."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from walking import batches, loss_of, network, same

from modularbase_core.errors import ConfigError, DataError, TrainingError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.learn import blended
from modularbase_core.train.loop import Batch, Settings, train
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.saving import read_checkpoint
from modularbase_core.train.schedule import Schedule


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_training_lowers_the_loss(tmp_path: Path, optimiser: str) -> None:
    model = network()
    before = loss_of(model)(*next(batches(1000)))
    schedule, settings = Schedule(steps=80, warmup_steps=2, other_rate=0.01), Settings(optimiser=optimiser)
    train(model, loss_of(model), batches, schedule, tmp_path / "c.pt", settings=settings, quiet=True)
    assert loss_of(model)(*next(batches(1000))) < 0.5 * before


def test_muon_takes_matrices_and_adamw_the_rest_or_all() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "linear": nn.Linear(4, 4)})
    muon, adam = Optimisers(model, Schedule(steps=1)).state_dict()
    assert [len(group["params"]) for group in muon["param_groups"]] == [1]
    assert [(len(group["params"]), group["weight_decay"]) for group in adam["param_groups"]] == [(2, 0.0)]
    (alone,) = Optimisers(model, Schedule(steps=1), "adamw").state_dict()
    assert [(len(group["params"]), group["weight_decay"]) for group in alone["param_groups"]] == [(1, 0.01), (2, 0.0)]


def test_the_rate_warms_up_holds_and_decays() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, decay_share=0.5)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1.0
    assert factors[99] == pytest.approx(0.02)
    assert sorted(factors[50:], reverse=True) == factors[50:]


def test_a_cosine_warms_up_and_falls_to_a_fiftieth() -> None:
    schedule = Schedule(steps=110, warmup_steps=10, kind="cosine")
    factors = [schedule.factor(step) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[60] == pytest.approx(0.51)
    assert factors[109] == pytest.approx(0.02, abs=1e-3)
    assert sorted(factors[10:], reverse=True) == factors[10:]


def gradients(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, loss: object, batch: Batch, settings: Settings, checkpoint: Path
) -> list[Tensor]:
    """Return the gradients of one step on `batch`."""
    kept: list[Tensor] = []
    clip = Optimisers.clip

    def watched(optimisers: Optimisers) -> float:
        kept.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        return clip(optimisers)

    with monkeypatch.context() as patch:
        patch.setattr(Optimisers, "clip", watched)
        train(model, loss, lambda step: iter([batch]), Schedule(steps=1), checkpoint, settings=settings, quiet=True)
    return kept


def language(*, frozen_base: bool = False) -> Whole:
    torch.manual_seed(0)
    blocks = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
    base = Base(BaseArchitecture(blocks=blocks, vocabulary_size=300, understanding_layers=1, fusion_layers=1))
    return Whole(base, Pack(PackArchitecture(base_hidden_size=64, blocks=blocks, layers=2)), 0, frozen_base=frozen_base)


def text() -> Batch:
    """Return four windows, of which few tokens count, and other numbers in each."""
    random = torch.Generator().manual_seed(1)
    learn = torch.rand(4, 33, generator=random) < torch.tensor([0.9, 0.1, 0.0, 0.5])[:, None]
    return torch.randint(0, 300, (4, 33), generator=random), learn


@pytest.mark.parametrize(
    "settings",
    [Settings(accumulate=4), Settings(accumulate=2), Settings(checkpoint_activations=True)],
    ids=["four parts", "two parts", "activations made anew"],
)
def test_a_step_in_parts_has_the_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    found = []
    for number, one in enumerate((Settings(), settings)):
        model = language()
        loss = Loss(model, compiled=False, precision="fp32")
        found.append(gradients(monkeypatch, model, loss, text(), one, tmp_path / f"{number}.pt"))
    assert len(found[0]) == len(found[1]) == len(list(language().parameters()))
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ConfigError, match="a batch of 4 windows cannot be shared evenly by 1 processes in 3 parts"):
        train(
            model,
            loss_of(model),
            batches,
            Schedule(steps=1),
            tmp_path / "c.pt",
            settings=Settings(accumulate=3),
            quiet=True,
        )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, dropout: float) -> None:
    whole, schedule = network(dropout=dropout), Schedule(steps=20, warmup_steps=2)
    train(whole, loss_of(whole), batches, schedule, tmp_path / "whole.pt", quiet=True)

    def interrupted(step: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(step)):
            if step + number == 9:
                raise KeyboardInterrupt
            yield batch

    first = network(dropout=dropout)
    with pytest.raises(KeyboardInterrupt):
        train(first, loss_of(first), interrupted, schedule, tmp_path / "cut.pt", quiet=True)
    second = network(dropout=dropout)
    train(second, loss_of(second), batches, schedule, tmp_path / "cut.pt", quiet=True)
    assert same(whole, second)


def test_only_the_last_step_is_finished_and_once_however_often_the_run_was_interrupted(tmp_path: Path) -> None:
    start, whole, schedule = network().state_dict(), network(), Schedule(steps=6, warmup_steps=2)
    train(whole, loss_of(whole), batches, schedule, tmp_path / "whole.pt", quiet=True)

    def interrupted(step: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(step)):
            yield batch
            if step + number in (1, 4):
                raise KeyboardInterrupt

    for _ in range(2):
        cut = network()
        with pytest.raises(KeyboardInterrupt):
            train(
                cut,
                loss_of(cut),
                interrupted,
                schedule,
                tmp_path / "c.pt",
                quiet=True,
                finish=partial(blended, start, 0.7),
            )
    for _ in range(2):
        cut = network()
        train(cut, loss_of(cut), batches, schedule, tmp_path / "c.pt", quiet=True, finish=partial(blended, start, 0.7))
    kept = read_checkpoint(tmp_path / "c.pt")["network"]
    for name, value in whole.state_dict().items():
        assert torch.equal(kept[name], torch.lerp(start[name], value, 0.7))


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
    assert same(whole, second)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    schedule, wider = Schedule(steps=2, warmup_steps=1), nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8))
    train(wider, loss_of(wider), batches, schedule, tmp_path / "c.pt", quiet=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    with pytest.raises(DataError, match=r"c\.pt was trained with another architecture; .*another runs folder"):
        train(model, loss_of(model), batches, schedule, tmp_path / "c.pt", quiet=True)


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    model = network()
    train(model, loss_of(model), batches, Schedule(steps=2), tmp_path / "c.pt", quiet=True)
    with pytest.raises(ConfigError, match=r"c\.pt was begun with another optimiser than 'adamw'"):
        train(
            model,
            loss_of(model),
            batches,
            Schedule(steps=3),
            tmp_path / "c.pt",
            settings=Settings(optimiser="adamw"),
            quiet=True,
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing_more(tmp_path: Path, bad: float) -> None:
    model, checkpoint = network(), tmp_path / "c.pt"
    told = r"step 6 of 9: the loss is (nan|inf); lower matrix_rate and other_rate, or look at what that step learns"

    def lost(step: int) -> Iterator[Batch]:
        for number, (ids, learn) in enumerate(batches(step)):
            yield ids * (bad if step + number == 5 else 1.0), learn

    with pytest.raises(TrainingError, match=told + r".*nothing was saved so far"):
        train(model, loss_of(model), lost, Schedule(steps=9), checkpoint, quiet=True)
    assert not checkpoint.exists()
    model = network()
    with pytest.raises(TrainingError, match=told + r".*step 5 is kept in .*c\.pt"):
        train(model, loss_of(model), lost, Schedule(steps=9), checkpoint, quiet=True, save_seconds=0.0)
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["network"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    model = network()

    def loss(ids: Tensor, learn: Tensor) -> Tensor:
        return (model(ids) * 0.0).sum().abs().sqrt()  # 0, with an endless slope

    with pytest.raises(TrainingError, match="step 1 of 2: the gradient's norm is nan"):
        train(model, loss, batches, Schedule(steps=2), tmp_path / "c.pt", quiet=True)
    assert not list(tmp_path.iterdir())
