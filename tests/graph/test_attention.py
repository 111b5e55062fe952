"""The two roads of attention inside windows give one result, and the same gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.graph import attention as roads
from modularbase_core.graph.attention import attention


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def documents(windows: int, length: int) -> Tensor:
    """Return [W, 1, N, N]: causal, some documents in each window, one of a single token."""
    starts = torch.rand(windows, length, generator=torch.Generator().manual_seed(3)) < 4 / length
    starts[:, [0, 5, 6]] = True
    document = starts.cumsum(1)
    return ((document[:, :, None] == document[:, None, :]) & torch.ones(length, length).tril().bool())[:, None]


@pytest.mark.parametrize(("kv_heads", "length"), [(2, 300), (4, 256), (1, 520), (2, 16)])
def test_plain_products_in_chunks_are_what_torch_calls_attention(kv_heads: int, length: int) -> None:
    query, key, value = (random(2, n, length, 8, seed=n) for n in (4, kv_heads, kv_heads))
    mask, weight = documents(2, length), random(2, 4, length, 8, seed=9).detach()
    got = attention(query, key, value, mask)
    wanted = functional.scaled_dot_product_attention(
        query, *(one.repeat_interleave(4 // kv_heads, 1) for one in (key, value)), attn_mask=mask
    )
    assert torch.allclose(got, wanted, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), (query, key, value)),
        torch.autograd.grad((wanted * weight).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_windows_too_long_to_keep_the_scores_of_take_torchs_road(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (random(1, n, 64, 8, seed=n) for n in (4, 2, 2))
    mask = documents(1, 64)
    short = attention(query, key, value, mask)
    monkeypatch.setattr(roads, "WRITTEN_OUT", 63)
    monkeypatch.setattr(roads, "_written_out", None)
    assert torch.allclose(attention(query, key, value, mask), short, atol=1e-5)
    causal = torch.ones(64, 64).tril().bool()[None, None]
    assert torch.allclose(attention(query, key, value, None), attention(query, key, value, causal), atol=1e-5)
