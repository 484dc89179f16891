"""The processes that train together (``accelerate launch``), or the one that trains alone.

Each process takes a share of every update's rows; gradients are summed over all in one message. The model is replicated:
for adapters that is little to send. Started by ``accelerate launch --cpu --num_processes 2 -m apps.cli train …``, or by
``torchrun``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import distributed

from curation.errors import UsageError


@dataclass(frozen=True)
class Peers:
    """This process's number among how many."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what the group makes."""
        return self.rank == 0

    def share(self, rows: list[int]) -> list[int]:
        """This process's rows of an update."""
        return rows[self.rank :: self.world]

    def add_up(self, parameters: Iterable[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Sum gradients and loss over the processes; every gradient is then the same everywhere."""
        if self.world == 1:
            return loss
        trained = list(parameters)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = torch.cat([*(g.flatten().float() for g in parts), loss.detach().float().reshape(1)])
        distributed.all_reduce(flat)
        start = 0
        for p, part in zip(trained, parts, strict=True):
            p.grad = flat[start : start + part.numel()].view_as(part).to(part.dtype)
            start += part.numel()
        return flat[-1]

    def wait(self) -> None:
        """Until all have come this far."""
        if self.world > 1:
            distributed.barrier()


ALONE = Peers()


_SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""What ``accelerate launch`` sets for a configuration that spreads one model over processes."""


def join(device: torch.device | str | None) -> tuple[Peers, torch.device]:
    """This process's place in the group it was started in, and its device.

    Raises ``UsageError`` where ``accelerate`` was told to shard the model: each process would hold all of it all the same,
    and whoever counted on a share would run out of memory, or pay for it, without a word.
    """
    from training.model import best_device

    asked = next((name for variable, name in _SHARDING.items() if os.environ.get(variable) == "true"), None)
    if asked:
        raise UsageError(
            f"{asked} was asked for, but every process holds the whole model here",
            where="accelerate",
            next="Launch with --multi_gpu alone; where the model does not fit, qlora holds it in 4 bits",
        )
    where = torch.device(device) if device is not None else best_device()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, where
    from accelerate import PartialState

    state = PartialState(cpu=where.type == "cpu")
    return Peers(state.process_index, state.num_processes), state.device
