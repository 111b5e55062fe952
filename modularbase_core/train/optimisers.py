"""Which optimiser learns which parameters, and their step: clip, rates of the schedule, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from modularbase_core.train.schedule import Schedule


class Optimisers:
    """The optimisers of a network's learning parameters.

    kind: muon is Muon (Jordan et al., 2024) at `matrix_rate` on hidden matrices, with weight decay, and AdamW
    (Loshchilov and Hutter, 2019) at `other_rate` on embeddings, heads, experts of a mixture, norms and biases, without;
    adamw is AdamW at `other_rate` on all, with weight decay on what Muon would take.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, kind: str = "muon") -> None:
        learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
        matrices = [p for name, p in learning.items() if _is_hidden(name, p)]
        others = [p for name, p in learning.items() if not _is_hidden(name, p)]
        self._schedule = schedule
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if kind == "muon" and matrices:
            muon = torch.optim.Muon(matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay)
            self._parts.append((muon, schedule.matrix_rate))
        groups = [{"params": others, "weight_decay": 0.0}]
        if kind == "adamw":
            groups.insert(0, {"params": matrices, "weight_decay": schedule.weight_decay})
        if groups := [group for group in groups if group["params"]]:
            # fused: one pass over a parameter and its moments, a tenth of the time of several
            adam = torch.optim.AdamW(groups, lr=schedule.other_rate, betas=(0.9, 0.95), fused=True)
            self._parts.append((adam, schedule.other_rate))
        self._parameters = [*matrices, *others]

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Take the scale of the loss out of the gradients."""
        for optimiser, _ in self._parts:
            scaler.unscale_(optimiser)

    def clip(self) -> float:
        """Clip the gradient and return the norm that it had, of all parameters together."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def step(self, number: int) -> None:
        """Make step `number`; the gradients stay."""
        for optimiser, rate in self._parts:
            for group in optimiser.param_groups:
                group["lr"] = rate * self._schedule.factor(number)
            optimiser.step()

    def clear(self) -> None:
        """Drop the gradients."""
        for optimiser, _ in self._parts:
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the optimisers' states."""
        return [optimiser.state_dict() for optimiser, _ in self._parts]

    def fits(self, states: list[dict[str, Any]]) -> bool:
        """Tell whether `states` are those of the same optimisers over as many parameters."""

        def sizes(state: dict[str, Any]) -> list[int]:
            return [len(group["params"]) for group in state["param_groups"]]

        return list(map(sizes, states)) == list(map(sizes, self.state_dict()))

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned, of whole tensors; each is divided as its parameter is."""
        for (optimiser, _), state in zip(self._parts, states, strict=True):
            owners = [p for group in optimiser.param_groups for p in group["params"]]
            kept = {
                number: {key: _divided(value, owners[number]) for key, value in of_one.items()}
                for number, of_one in state["state"].items()
            }
            optimiser.load_state_dict({**state, "state": kept})


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix from one hidden state to another: not one that reads tokens or makes logits."""
    return parameter.ndim == 2 and "embedding" not in name and "head." not in name


def _divided(value: Any, owner: Tensor) -> Any:  # Any: an optimiser keeps tensors and numbers
    if isinstance(owner, DTensor) and isinstance(value, Tensor) and value.shape == owner.shape:
        return distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements, src_data_rank=None)
    return value
