from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from modularbase_core.errors import ConfigError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.corpus import Record
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.parallel import joined
from modularbase_core.train.perplexity import shuffled_prompts

SHAPE = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
MIXTURE = replace(SHAPE, ffn_size=32, experts=4)


def whole(*, frozen_base: bool, shape: Blocks = SHAPE, layers: int = 1, rank: int = 0) -> Whole:
    torch.manual_seed(0)
    base = Base(BaseArchitecture(blocks=shape, vocabulary_size=300, understanding_layers=1, fusion_layers=1))
    own = {"head_rank": rank, "vocabulary_size": 300 if rank else 0}
    pack = Pack(PackArchitecture(base_hidden_size=64, blocks=shape, layers=layers, **own))
    return Whole(base, pack, 0, frozen_base=frozen_base)


def batch(tokens: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 300, (2, tokens + 1), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_the_chunked_head_loss_is_cross_entropy_and_so_are_its_gradients() -> None:
    model = whole(frozen_base=False)
    ids = torch.randint(1, 300, (2, 41), generator=torch.Generator().manual_seed(1))
    learn = torch.rand(2, 41, generator=torch.Generator().manual_seed(2)) < 0.5
    loss = Loss(model, compiled=False)(ids, learn)
    loss.backward()
    got = model.base.embedding.weight.grad.clone()
    model.zero_grad()
    rows = torch.nonzero(learn[:, 1:].flatten()).flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        place = Windows(2)
        hidden = model.base.understand(ids[:, :-1].flatten(), place)
        logits = model.base.fuse(model.pack(hidden, place), place, rows)
    wanted = functional.cross_entropy(logits.float(), ids[:, 1:].flatten()[rows])
    wanted.backward()
    assert abs(loss - wanted) < 0.01 * wanted
    assert (got - model.base.embedding.weight.grad).norm() < 0.03 * got.norm()


def test_a_pack_learns_alone() -> None:
    model = whole(frozen_base=True)
    ids = torch.randint(1, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    Loss(model, compiled=False)(ids, torch.ones_like(ids, dtype=torch.bool)).backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert all(p.grad is not None for p in model.pack.parameters())


@pytest.mark.parametrize("parts", [("fusion",), ("pack", "fusion"), ("head",), ("understanding", "embedding")])
def test_only_the_parts_that_are_named_learn(parts: tuple[str, ...]) -> None:
    model = whole(frozen_base=False)
    model.learn_only(parts)
    Loss(model, compiled=False)(*batch()).backward()
    learnt = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    # the head is the embedding, where they are tied
    begins = {"fusion": ("base.fusion.", "base.norm."), "pack": ("pack.",), "head": ("base.embedding.",)}
    wanted = tuple(begin for part in parts for begin in begins.get(part, (f"base.{part}.",)))
    assert learnt == {name for name, _ in model.named_parameters() if name.startswith(wanted)}


@pytest.mark.parametrize("frozen_base", [False, True])
def test_a_batch_where_no_loss_counts_teaches_nothing(frozen_base: bool) -> None:
    model = whole(frozen_base=frozen_base)
    ids = torch.randint(1, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    loss = Loss(model, compiled=False)(ids, torch.zeros_like(ids, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.pack.parameters())


def test_the_loss_counts_each_mixture_that_learns_by_its_weight() -> None:
    ids, learn = batch()
    for frozen_base, mixtures in ((False, 4), (True, 2)):
        model = whole(frozen_base=frozen_base, shape=MIXTURE, layers=2)
        plain = Loss(model, compiled=False, balance=0.0)(ids, learn)
        loss = Loss(model, compiled=False, balance=0.5, z_loss=0.25)(ids, learn)
        assert [one.counts.sum() for one in model.routed] == [80 * 2] * mixtures
        more = sum(0.5 * one.balance + 0.25 * one.z_loss for one in model.routed)
        torch.testing.assert_close(loss, plain + more)
        loss.backward()
        assert all(p.grad is not None for p in model.pack.parameters())
        assert all((p.grad is None) == frozen_base for p in model.base.parameters())


def test_a_log_is_told_how_evenly_experts_are_used() -> None:
    dense, mixed = (Loss(whole(frozen_base=True, shape=shape), compiled=False) for shape in (SHAPE, MIXTURE))
    for loss in (dense, mixed):
        loss(*batch())
    assert dense.figures() == {}
    figures = mixed.figures()
    assert list(figures) == ["balance", "busiest"]
    assert 1 <= figures["busiest"] <= 2


def test_blocks_that_are_run_anew_learn_the_same_from_a_mixture() -> None:
    grads = []
    for recompute in (False, True):
        model = whole(frozen_base=True, shape=MIXTURE, layers=2)
        model.pack.experts.recompute = recompute
        Loss(model, compiled=False)(*batch()).backward()
        assert len(model.routed) == 2
        grads.append([p.grad for p in model.pack.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_mixture_whose_weights_are_divided_learns_the_same() -> None:
    grads = []
    for parallel in ("ddp", "fsdp"):
        model = whole(frozen_base=True, shape=MIXTURE, layers=2, rank=8)
        loss = Loss(model, compiled=False, precision="fp32", balance=1.0)
        with joined(parallel, "cpu") as ranks:
            ranks.spread(model, loss)(*batch()).backward()
            assert len(model.routed) == 2
            grads.append([ranks.whole(p.grad) for p in model.pack.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_mixtures_are_not_compiled_for_it_gains_them_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Whole] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    dense, mixed = (whole(frozen_base=True, shape=shape) for shape in (SHAPE, MIXTURE))
    for model in (dense, mixed):
        Loss(model, compiled=True)
    assert compiled == [dense]


@pytest.mark.parametrize("frozen_base", [False, True])
def test_what_a_pack_adds_to_the_head_is_in_the_loss_and_learns(frozen_base: bool) -> None:
    model, (ids, learn) = whole(frozen_base=frozen_base, rank=8), batch()
    head = model.pack.head
    assert Loss(model, compiled=False, precision="fp32")(ids, learn).item() == pytest.approx(
        Loss(whole(frozen_base=frozen_base), compiled=False, precision="fp32")(ids, learn).item(), abs=1e-6
    )
    torch.nn.init.normal_(head.up.weight, std=0.5)
    loss = Loss(model, compiled=False, precision="fp32")(ids, learn)
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    place, rows = Windows(2), torch.arange(80)
    output = model.pack(model.base.understand(ids[:, :-1].flatten(), place), place)
    logits = head(output, rows, model.base.fuse(output, place, rows), torch.ones(80))
    wanted = functional.cross_entropy(logits, ids[:, 1:].flatten())
    wanted.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
    assert got.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("base.") for name in got) is not frozen_base
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-4, rtol=1e-3)


def test_a_pack_for_a_head_of_other_tokens_is_refused() -> None:
    model = whole(frozen_base=True)
    pack = Pack(PackArchitecture(base_hidden_size=64, blocks=SHAPE, layers=1, head_rank=8, vocabulary_size=200))
    with pytest.raises(ConfigError, match="of 200 tokens, but the base has 300; set its vocabulary_size to that"):
        Whole(model.base, pack, 0, frozen_base=True)


def test_shuffling_gives_every_response_the_prompt_of_another() -> None:
    records = [
        Record(None, ({"role": "user", "content": f"p{i}"}, {"role": "assistant", "content": f"r{i}"}), "en", "")
        for i in range(9)
    ]
    mixed = shuffled_prompts(records)
    assert sorted(one.messages[0]["content"] for one in mixed) == [f"p{i}" for i in range(9)]
    for i, one in enumerate(mixed):
        assert one.messages[1]["content"] == f"r{i}"
        assert one.messages[0]["content"] != f"p{i}"
