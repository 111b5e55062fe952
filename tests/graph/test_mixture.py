"""A mixture's experts: against a plain sum token by token, and what their router is told by its losses."""

import pytest
import torch
from torch.nn import functional

from modularbase_core.graph import ops
from modularbase_core.graph.routed import most_over_even, routed
from modularbase_core.sdk.architecture import ACTIVATIONS

EXPERTS, CHOSEN, WIDTH, FFN = 4, 2, 6, 5


def drawn(form: str, tokens: int = 9) -> list[torch.Tensor]:
    """x, ids, gates, gate_up, down, in float64."""
    seeded = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded, dtype=torch.float64).requires_grad_()

    ids = torch.stack([torch.randperm(EXPERTS, generator=seeded)[:CHOSEN] for _ in range(tokens)]).int()
    projected = FFN if form == "gelu" else 2 * FFN
    return [
        normal(tokens, WIDTH),
        ids,
        normal(tokens, CHOSEN),
        normal(EXPERTS, projected, WIDTH),
        normal(EXPERTS, WIDTH, FFN),
    ]


def token_by_token(x, ids, gates, gate_up, down, form):
    rows = []
    for token in range(len(x)):
        row = 0
        for slot in range(CHOSEN):
            expert = int(ids[token, slot])
            projected = gate_up[expert] @ x[token]
            if form == "gelu":
                hidden = functional.gelu(projected, approximate="tanh")
            else:
                gate, up = projected[:FFN], projected[FFN:]
                hidden = (functional.silu(gate) if form == "swiglu" else functional.gelu(gate, approximate="tanh")) * up
            row = row + gates[token, slot] * (down[expert] @ hidden)
        rows.append(row)
    return torch.stack(rows)


def gradients(run, values: list[torch.Tensor]) -> list[torch.Tensor]:
    learning = [value for value in values if value.requires_grad]
    return list(torch.autograd.grad(run(values).square().sum(), learning))


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_a_token_gets_the_sum_of_its_experts_and_they_its_gradient(form):
    values = drawn(form)
    torch.testing.assert_close(ops.moe_reference(*values, form), token_by_token(*values, form))
    got = gradients(lambda given: ops.moe_reference(*given, form), values)
    wanted = gradients(lambda given: token_by_token(*given, form), values)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_no_token_is_dropped_where_all_want_the_same_experts():
    values = drawn("swiglu", tokens=33)
    values[1] = torch.tensor([[2, 0]], dtype=torch.int32).expand(33, -1)
    torch.testing.assert_close(ops.moe_reference(*values, "swiglu"), token_by_token(*values, "swiglu"))
    _, _, gate_up, down = gradients(lambda given: ops.moe_reference(*given, "swiglu"), values)
    assert not gate_up[[1, 3]].any()
    assert not down[[1, 3]].any()


def test_the_same_tokens_give_the_same_bits_in_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    values = [value.float() if value.is_floating_point() else value for value in drawn("swiglu", tokens=1000)]
    values = [value.detach().requires_grad_() if value.is_floating_point() else value for value in values]

    def bits() -> list[torch.Tensor]:
        return [ops.moe_reference(*values, "swiglu"), *gradients(lambda g: ops.moe_reference(*g, "swiglu"), values)]

    first = bits()
    again = [bits() for _ in range(3)]
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for run in again for one, other in zip(first, run, strict=True))


def test_the_balance_loss_is_that_of_switch_transformer_for_any_number_of_experts_per_token():
    logits = torch.randn(50, EXPERTS, generator=torch.Generator().manual_seed(0))
    for chosen in (1, 2, 3):
        ids = logits.topk(chosen).indices
        # as Mixtral's published code has it, whose loss of k even experts is k
        per_slot = functional.one_hot(ids, EXPERTS).float().mean(0)
        wanted = EXPERTS * (per_slot * logits.softmax(-1).mean(0)).sum() / chosen
        got = routed(logits, ids.int())
        torch.testing.assert_close(got.balance, wanted)
        torch.testing.assert_close(got.z_loss, logits.exp().sum(-1).log().square().mean())
        assert got.counts.tolist() == torch.bincount(ids.flatten(), minlength=EXPERTS).tolist()


def test_the_balance_loss_is_one_where_experts_are_even_and_grows_with_the_busiest():
    even = torch.eye(EXPERTS).repeat(8, 1) * 20
    assert routed(even, even.topk(1).indices).balance.item() == pytest.approx(1)
    skewed = torch.zeros(32, EXPERTS)
    skewed[:, 3] = 20
    result = routed(skewed, skewed.topk(1).indices)
    assert result.balance.item() == pytest.approx(EXPERTS)
    assert most_over_even([result.counts]) == EXPERTS


def test_the_balance_loss_brings_tokens_back_to_experts_that_had_none():
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=seeded) + torch.tensor([2.0, *[0.0] * 7])
    router = torch.zeros(EXPERTS, 8)
    router[:2, 0] = 1.0
    router += 0.1 * torch.randn(EXPERTS, 8, generator=seeded)
    router.requires_grad_()
    busiest = []
    for _ in range(60):
        logits = x @ router.T
        result = routed(logits, logits.topk(CHOSEN).indices)
        busiest.append(most_over_even([result.counts]))
        router.data -= 2.0 * torch.autograd.grad(result.balance, router)[0]
    assert busiest[0] > 1.8
    assert busiest[-1] < 1.2


def test_how_even_experts_are_is_the_mean_over_mixtures():
    assert most_over_even([torch.tensor([6, 2, 2, 2]), torch.tensor([3, 3, 3, 3])]) == 1.5
    assert most_over_even([]) == most_over_even([torch.zeros(4, dtype=torch.int64)]) == 1.0
