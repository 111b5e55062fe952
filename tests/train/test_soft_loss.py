"""The divergence from a teacher, held to torch's own."""

import pytest
import torch
from torch.nn import functional

from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.packing import document_mask
from modularbase_core.train.soft_loss import SoftLoss, Top, top_of_logits

SHAPE = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
IDS = torch.randint(1, 300, (2, 41), generator=torch.Generator().manual_seed(1))
LEARN = torch.rand(2, 41, generator=torch.Generator().manual_seed(2)) < 0.5


def whole(seed: int, *, frozen_base: bool = False) -> Whole:
    torch.manual_seed(seed)
    base = Base(BaseArchitecture(blocks=SHAPE, vocabulary_size=300, understanding_layers=1, fusion_layers=1))
    return Whole(base, Pack(PackArchitecture(base_hidden_size=64, blocks=SHAPE, layers=1)), 0, frozen_base=frozen_base)


def logits_of(model: Whole, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    place = Windows(len(ids), document_mask(ids, 0))
    return model.base.fuse(model.pack(model.base.understand(ids.flatten(), place), place), place, rows)


def soft_loss(model: Whole, teacher: Whole, count: int, temperature: float = 1.0, weight: float = 1.0) -> SoftLoss:
    def top_of(ids: torch.Tensor, rows: torch.Tensor) -> Top:
        return top_of_logits(logits_of(teacher, ids, rows), count, temperature)

    return SoftLoss(model, top_of, weight=weight, temperature=temperature, compiled=False, precision="fp32")


def dense(model: Whole, teacher: Whole, count: int, temperature: float, weight: float) -> torch.Tensor:
    """The same with whole logits, by autograd."""
    rows = torch.nonzero(LEARN[:, 1:].flatten()).flatten()
    logits = logits_of(model, IDS[:, :-1], rows)
    top = top_of_logits(logits_of(teacher, IDS[:, :-1], rows).detach(), count, temperature)
    student = (logits / temperature).softmax(1)
    chosen = student.gather(1, top.tokens)
    p = torch.cat([top.shares, (1 - top.shares.sum(1, keepdim=True)).clamp(min=0)], 1)
    q = torch.cat([chosen, (1 - chosen.sum(1, keepdim=True)).clamp(min=1e-6)], 1)
    apart = functional.kl_div(q.log(), p, reduction="batchmean")
    hard = functional.cross_entropy(logits, IDS[:, 1:].flatten()[rows])
    return weight * temperature**2 * apart + (1 - weight) * hard


@pytest.mark.parametrize(("count", "temperature", "weight"), [(8, 1.0, 1.0), (8, 2.0, 0.6), (300, 3.0, 1.0)])
def test_the_chunked_divergence_and_its_gradients_are_those_of_whole_logits(count, temperature, weight):
    model, teacher = whole(0), whole(1)
    loss = soft_loss(model, teacher, count, temperature, weight)(IDS, LEARN)
    loss.backward()
    got = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    wanted = dense(model, teacher, count, temperature, weight)
    wanted.backward()
    assert torch.isclose(loss, wanted, rtol=1e-4)
    for name, value in model.named_parameters():
        assert (got[name] - value.grad).norm() < 1e-3 * value.grad.norm() + 1e-6, name


def test_of_every_token_it_is_the_whole_divergence():
    model, teacher = whole(0), whole(1)
    rows = torch.nonzero(LEARN[:, 1:].flatten()).flatten()
    logs = [logits_of(one, IDS[:, :-1], rows).log_softmax(1) for one in (model, teacher)]
    wanted = functional.kl_div(*logs, log_target=True, reduction="batchmean")
    every, some = (soft_loss(model, teacher, count)(IDS, LEARN).item() for count in (300, 8))
    assert every == pytest.approx(wanted.item(), rel=1e-4)
    assert 0 < some < every


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    model = whole(0)
    loss = soft_loss(model, model, 16)
    value = loss(IDS, LEARN)
    value.backward()
    assert abs(value) < 1e-5
    assert loss.figures()["divergence"] == pytest.approx(0, abs=1e-5)
    assert all(parameter.grad.norm() < 1e-4 for parameter in model.parameters())


def test_without_a_weight_it_is_the_likelihood():
    model = whole(0)
    soft = soft_loss(model, whole(1), 16, weight=1e-9)(IDS, LEARN)
    assert soft.item() == pytest.approx(Loss(model, compiled=False, precision="fp32")(IDS, LEARN).item(), rel=1e-5)


def test_of_a_frozen_base_only_the_pack_learns_and_a_batch_where_nothing_counts_teaches_nothing():
    model, teacher = whole(0, frozen_base=True), whole(1)
    soft_loss(model, teacher, 16)(IDS, LEARN).backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert all(p.grad is not None for p in model.pack.parameters())
    model.zero_grad()
    loss = soft_loss(model, teacher, 16)(IDS, torch.zeros_like(LEARN))
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
