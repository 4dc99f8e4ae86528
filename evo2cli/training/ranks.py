"""The processes that share a run, one a GPU: who this one is, and what they tell each other."""

import datetime
import os
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from evo2cli.errors import UserError

_PATIENCE = datetime.timedelta(minutes=30)  # for the slowest: writing a large checkpoint


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: 0-based; 0 writes and talks.
        world: How many there are.
        device: What this one computes on.
        context: So many neighbouring ranks share the windows of one of them.
        neighbours: These; None when context is 1.
    """

    rank: int
    world: int
    device: torch.device
    context: int = 1
    neighbours: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls, device: torch.device) -> "Ranks":
        """A run of one process."""
        return cls(0, 1, device)

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Join the processes that a launcher started: torchrun, DeepSpeed's, or srun with either.

        Without a launcher the run is of one process. Ranks on GPUs take one each.

        Raises:
            UserError: There are fewer GPUs than ranks on this machine.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls.alone(device)
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"rank {os.environ['RANK']}: no GPU {local} here, only "
                    f"{torch.cuda.device_count()}; start fewer processes"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            if device.type == "cuda":
                dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), world, device)

    def sharing(self, context: int) -> "Ranks":
        """These ranks, every `context` of which share windows; all must call it.

        `context` divides the world.
        """
        if context == 1:
            return self
        firsts = range(0, self.world, context)
        groups = [dist.new_group(list(range(first, first + context))) for first in firsts]
        return replace(self, context=context, neighbours=groups[self.rank // context])

    def leave(self) -> None:
        """End the group; a process must not call the others afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    @property
    def group(self) -> int:
        """Which group of neighbours this rank is in, 0-based."""
        return self.rank // self.context

    @property
    def num_groups(self) -> int:
        """Groups of neighbours; each has windows of its own."""
        return self.world // self.context

    def share(self, total: int) -> slice:
        """This group's part of `total` things that the groups divide."""
        each = total // self.num_groups
        return slice(self.group * each, (self.group + 1) * each)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank; the same answer everywhere."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised.item())

    def gather(self, value: float) -> list[float]:
        """The value of every rank, in their order."""
        if self.world == 1:
            return [value]
        mine = torch.tensor([value], dtype=torch.float64, device=self.device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(all_of_them, mine)
        return [entry.item() for entry in all_of_them]

    def collect(self, value: str | None) -> list[str | None]:
        """What every rank says, in their order; slow, for the end of a run."""
        if self.world == 1:
            return [value]
        said: list[str | None] = [None] * self.world
        dist.all_gather_object(said, value)
        return said

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()
