"""Several processes that train one network, started by torchrun: who reads what, how gradients meet, what is whole.

One process alone is the same road with nothing on it. Every process makes the same batches and takes its own windows
of each, so how many there are changes no step, and a checkpoint goes on in any number of them.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from modularbase_core.errors import ConfigError
from modularbase_core.graph.blocks import Block

LossOf = Callable[[Tensor, Tensor], Tensor]
"""ids [W, N+1], learn [W, N+1] -> scalar, the mean over what counts."""


@dataclass(slots=True)
class Ranks:
    """This process among all that train together.

    number, count: which of how many; device: its own. kind: "" alone, ddp (each holds all weights; Li et al., 2020) or
    fsdp (each holds its share of them, whole layers come together while they run; Zhao et al., 2023).
    """

    device: torch.device
    number: int = 0
    count: int = 1
    kind: str = ""
    offload: bool = False
    _learner: nn.Module | None = field(default=None, init=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    def share(self, whole: Tensor) -> Tensor:
        """Return this process's windows of a batch's."""
        return whole[self.number :: self.count]

    def spread(self, network: nn.Module, loss_of: LossOf) -> LossOf:
        """Divide `network` among the processes, in place, and return the loss whose gradients meet."""
        if not self.kind:
            return loss_of
        learner = _Learner(network, loss_of)
        if self.kind == "ddp":
            own = [self.device] if self.device.type == "cuda" else None
            self._learner = DistributedDataParallel(learner, device_ids=own)
        else:
            mesh = init_device_mesh(self.device.type, (self.count,))
            policy = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.offload else OffloadPolicy()
            for block in network.modules():
                if isinstance(block, Block):
                    fully_shard(block, mesh=mesh, offload_policy=policy)
            fully_shard(learner, mesh=mesh, offload_policy=policy)
            self._learner = learner
        return self._learner

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context for one part of a step; gradients meet in the last. (Shares of weights meet in each.)"""
        if isinstance(self._learner, DistributedDataParallel) and not last:
            return self._learner.no_sync()
        return nullcontext()

    def sum(self, *values: float) -> list[float]:
        """Return each value's sum over all processes."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return together.tolist()

    def whole(self, value: Any) -> Any:  # Any: what a checkpoint holds, nested
        """Return `value` with divided tensors made whole, on the CPU; all processes must ask, the first one gets it."""
        if isinstance(value, DTensor):
            full = value.full_tensor()
            return full.cpu() if self.first else None
        if isinstance(value, Mapping):
            return {key: self.whole(one) for key, one in value.items()}
        return [self.whole(one) for one in value] if isinstance(value, list) else value


def first_process() -> bool:
    """Tell whether this process writes and tells: alone, or the first of all that torchrun started."""
    if not dist.is_torchelastic_launched():
        return True
    _meet()
    return dist.get_rank() == 0


@contextmanager
def joined(parallel: str, device: str, *, offload: bool = False) -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone.

    parallel: ddp or fsdp. device: auto, cpu or cuda. offload: shares of weights wait in host memory.
    Raises ConfigError for a device that is not there, and for an offload without fsdp.
    """
    if offload and parallel != "fsdp":
        raise ConfigError("offload works with parallel = 'fsdp' alone; set that, or offload = false")
    launched = dist.is_torchelastic_launched()
    own = _device(device, dist.get_node_local_rank(0) if launched else 0)
    if not launched and parallel == "ddp":
        yield Ranks(own)
        return
    if launched:
        _meet()
    else:  # fsdp of one: for its offload
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch's own lists forget it
        dist.init_process_group(_backend(), store=store, rank=0, world_size=1)
    try:
        with ExitStack() as stack:
            if parallel == "fsdp":  # hooks between layers bring weights together; compiled code would skip them
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield Ranks(own, dist.get_rank(), dist.get_world_size(), parallel, offload)
    finally:
        if not launched:
            dist.destroy_process_group()


@contextmanager
def stop_noted(ranks: Ranks) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the user asked to stop.

    Of several processes each only notes it, so that all stop after the same step; one alone is interrupted at once.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True

    if ranks.count == 1:
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Learner(nn.Module):
    """Network and loss as one module, whose forward is all that needs the weights."""

    def __init__(self, network: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.network = network
        self._loss_of = partial(loss_of)  # a loss that is a module itself is not to bring the network in twice

    def forward(self, ids: Tensor, learn: Tensor) -> Tensor:
        """Return the loss."""
        loss: Tensor = self._loss_of(ids, learn)
        return loss


def _meet() -> None:
    """Meet the processes that torchrun started, once and to the end: there is no second meeting at one place."""
    if not dist.is_initialized():
        dist.init_process_group(_backend())
        atexit.register(dist.destroy_process_group)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _device(name: str, local: int) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError(
            "device is 'cuda', but torch finds no NVIDIA GPU; use device = 'cpu', or install a torch built for CUDA"
        )
    if name == "cpu" or not there:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
