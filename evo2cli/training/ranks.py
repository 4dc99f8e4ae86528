"""The ranks of a run, one process per GPU, and the communication between them."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from evo2cli.errors import UserError

_TIMEOUT = datetime.timedelta(minutes=30)  # for the slowest wait: writing a large checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process, as one of the ranks of a run.

    Attributes:
        rank: 0-based; rank 0 writes files and messages.
        world: Number of ranks.
        device: The device of this rank.
        context_parallel: Number of neighbouring ranks that share the same windows.
        neighbours: Their process group; None if `context_parallel` is 1.
    """

    rank: int
    world: int
    device: torch.device
    context_parallel: int = 1
    neighbours: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls, device: torch.device) -> "Ranks":
        """A run with a single process."""
        return cls(0, 1, device)

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Join the processes started by a launcher: torchrun, DeepSpeed's, or srun with either.

        Without a launcher the run has a single process. Each rank on GPUs uses its own.

        Raises:
            UserError: This machine has fewer GPUs than ranks.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls.alone(device)
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"rank {os.environ['RANK']}: needs GPU {local}, but this machine has "
                    f"{torch.cuda.device_count()}; start fewer processes"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            if device.type == "cuda":
                dist.init_process_group("nccl", timeout=_TIMEOUT, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=_TIMEOUT)
        return cls(dist.get_rank(), world, device)

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device) -> "Iterator[Ranks]":
        """As `join`, and `leave` at the end."""
        ranks = cls.join(device)
        try:
            yield ranks
        finally:
            ranks.leave()

    def sharing(self, context_parallel: int) -> "Ranks":
        """The same ranks, in groups of `context_parallel` (a divisor of world) that share windows.

        All ranks must call it.
        """
        if context_parallel == 1:
            return self
        firsts = range(0, self.world, context_parallel)
        groups = [dist.new_group(list(range(first, first + context_parallel))) for first in firsts]
        return replace(
            self,
            context_parallel=context_parallel,
            neighbours=groups[self.rank // context_parallel],
        )

    def leave(self) -> None:
        """Destroy the process group; there is no communication afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0

    @property
    def group(self) -> int:
        """Index of the group of neighbours that this rank is in."""
        return self.rank // self.context_parallel

    @property
    def num_groups(self) -> int:
        """Number of groups of neighbours; each group has windows of its own."""
        return self.world // self.context_parallel

    def share(self, total: int) -> slice:
        """The share of this group in `total` items, which the groups divide evenly."""
        each = total // self.num_groups
        return slice(self.group * each, (self.group + 1) * each)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; all ranks get the same answer."""
        if self.world == 1:
            return flag
        most = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return bool(most.item())

    def gather(self, value: float) -> list[float]:
        """The value of every rank, in the order of ranks."""
        if self.world == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(gathered, own)
        return [entry.item() for entry in gathered]

    def collect(self, value: str | None) -> list[str | None]:
        """The text of every rank, in the order of ranks; slow."""
        if self.world == 1:
            return [value]
        gathered: list[str | None] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.world > 1:
            dist.barrier()
