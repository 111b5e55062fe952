"""One attention, two places: whole windows for training, pages for inference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modularbase_core.graph.blocks import Stack
from modularbase_core.graph.places import Pages, Windows
from modularbase_core.sdk.architecture import PAGE_TOKENS, Blocks

SHAPE = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64, qkv_bias=True)
LAYERS, POOL = 2, 24


def stack(shape: Blocks = SHAPE) -> Stack:
    torch.manual_seed(0)
    return Stack(shape, LAYERS, 128).eval().requires_grad_(False)


def empty_pages(shape: Blocks = SHAPE) -> torch.Tensor:
    return torch.zeros(POOL, LAYERS, 2, shape.kv_heads, PAGE_TOKENS * shape.head_size)


def drawn(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, SHAPE.hidden_size, generator=torch.Generator().manual_seed(seed))


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def paged(network: Stack, x: list[torch.Tensor], chunks: list[list[int]]) -> list[torch.Tensor]:
    """Run ragged sequences chunk by chunk over shared pages, several sequences in a call."""
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    owned = torch.split(order, [-(-len(one) // PAGE_TOKENS) for one in x] + [POOL - sum(-(-len(o) // 16) for o in x)])
    pages, done = empty_pages(), [0] * len(x)
    out: list[list[torch.Tensor]] = [[] for _ in x]
    for step in range(max(map(len, chunks))):
        live = [i for i in range(len(x)) if step < len(chunks[i])]
        counts = [chunks[i][step] for i in live]
        slots = [
            int(owned[i][t // 16]) * 16 + t % 16
            for i, n in zip(live, counts, strict=True)
            for t in range(done[i], done[i] + n)
        ]
        visible = torch.zeros(len(live), 8, dtype=torch.int32)
        for row, i in enumerate(live):
            visible[row, : len(owned[i])] = owned[i]
        lengths = integers(*counts)
        place = Pages(
            pages,
            integers(*slots),
            (lengths.cumsum(0) - lengths).int(),
            lengths,
            integers(*(done[i] for i in live)),
            visible,
        )
        y = network(torch.cat([x[i][done[i] : done[i] + n] for i, n in zip(live, counts, strict=True)]), place)
        pages = place.pages
        for i, part in zip(live, torch.split(y, counts), strict=True):
            out[i].append(part)
            done[i] += len(part)
    return [torch.cat(parts) for parts in out]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=3))
def test_ragged_chunks_over_pages_equal_whole_windows(chunks: list[list[int]]) -> None:
    network = stack()
    x = [
        torch.randn(sum(one), SHAPE.hidden_size, generator=torch.Generator().manual_seed(i))
        for i, one in enumerate(chunks)
    ]
    for got, one in zip(paged(network, x, chunks), x, strict=True):
        wanted = network(one, Windows(1))
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_document_does_not_see_the_one_before_it() -> None:
    from modularbase_core.train.packing import document_mask

    network, begin = stack(), 0
    ids = torch.tensor([[begin, 1, 2, 3, begin, 4, 5]])
    x = drawn(7, 0)
    both = network(x, Windows(1, document_mask(ids, begin)))
    first = network(x[:4], Windows(1))
    assert torch.allclose(both[:4], first, atol=1e-5)
    changed = torch.cat([drawn(4, 9), x[4:]])
    again = network(changed, Windows(1, document_mask(ids, begin)))
    assert torch.allclose(again[4:], both[4:], atol=1e-5)


def test_a_mixture_of_experts_runs_only_the_chosen_ones() -> None:
    shape = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=32, experts=4, experts_per_token=2)
    network = stack(shape)
    x = drawn(5, 0)
    slots = torch.arange(5, dtype=torch.int32)
    place = Pages(empty_pages(shape), slots, integers(0), integers(5), integers(0), integers(0).view(1, 1))
    assert torch.allclose(network(x, place), network(x, Windows(1)), atol=1e-5)
    mixture = network.layers[0].ffn
    chosen = torch.topk(mixture.router(x), 2).indices
    unused = next(expert for expert in range(4) if not (chosen == expert).any(1).all())
    rows = ~(chosen == unused).any(1)
    before = mixture(x, place)
    mixture.down[unused] = float("nan")
    assert torch.equal(mixture(x, place)[rows], before[rows])
