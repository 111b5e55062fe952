import pytest
import torch
from torch.nn import functional

from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.corpus import Record
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.perplexity import shuffled_prompts

SHAPE = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)


def whole(*, frozen_base: bool) -> Whole:
    torch.manual_seed(0)
    base = Base(BaseArchitecture(blocks=SHAPE, vocabulary_size=300, understanding_layers=1, fusion_layers=1))
    pack = Pack(PackArchitecture(base_hidden_size=64, blocks=SHAPE, layers=1))
    return Whole(base, pack, 0, frozen_base=frozen_base)


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


@pytest.mark.parametrize("frozen_base", [False, True])
def test_a_batch_where_no_loss_counts_teaches_nothing(frozen_base: bool) -> None:
    model = whole(frozen_base=frozen_base)
    ids = torch.randint(1, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    loss = Loss(model, compiled=False)(ids, torch.zeros_like(ids, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.pack.parameters())


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
