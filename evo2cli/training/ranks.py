"""The ranks of a run (one process per GPU) and collectives between them."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from evo2cli.errors import UserError

_TIMEOUT = datetime.timedelta(minutes=30)  # the longest wait is for rank 0 to write a checkpoint


@dataclass(frozen=True)
class Ranks:
    """This rank, and the process groups that it belongs to.

    Attributes:
        rank: 0-based; rank 0 writes files and messages.
        world: World size, the number of ranks.
        device: The device of this rank.
        context_parallel: Degree of context parallelism: consecutive ranks that share each window.
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
        """Join the processes that a launcher started: torchrun, DeepSpeed's, or srun with either.

        Without a launcher the run has a single process. On GPUs each rank uses its own.

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
        """As `join`, as a context manager that ends in `leave`."""
        ranks = cls.join(device)
        try:
            yield ranks
        finally:
            ranks.leave()

    def sharing(self, context_parallel: int) -> "Ranks":
        """The same ranks in context-parallel groups of this size, a divisor of `world`.

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
        """Destroy the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0

    @property
    def data_parallel_rank(self) -> int:
        """Index of this rank's context-parallel group."""
        return self.rank // self.context_parallel

    @property
    def data_parallel_size(self) -> int:
        """Number of context-parallel groups; each reads its own windows."""
        return self.world // self.context_parallel

    def shard(self, total: int) -> slice:
        """This group's shard of `total` items, a multiple of `data_parallel_size`."""
        size = total // self.data_parallel_size
        return slice(self.data_parallel_rank * size, (self.data_parallel_rank + 1) * size)

    def sum(self, x: Tensor) -> Tensor:
        """All-reduce `x` by sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; all ranks get the same answer."""
        if self.world == 1:
            return flag
        largest = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return bool(largest.item())

    def all_gather(self, value: float) -> list[float]:
        """The values of all ranks, by rank."""
        if self.world == 1:
            return [value]
        local = torch.tensor([value], dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(local) for _ in range(self.world)]
        dist.all_gather(gathered, local)
        return [entry.item() for entry in gathered]

    def all_gather_text(self, value: str | None) -> list[str | None]:
        """The texts of all ranks, by rank; slow, because they are pickled."""
        if self.world == 1:
            return [value]
        gathered: list[str | None] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.world > 1:
            dist.barrier()
