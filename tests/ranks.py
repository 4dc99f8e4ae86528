"""Checks on several gloo ranks: one set of processes for all cases of a module."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = timedelta(seconds=120)  # of ranks that wait for one that failed

Attempt = Callable[..., None]  # a label, a check, and what it takes


def failures_on_ranks(
    count: int, folder: Path, checks: Callable[[int, Attempt], None]
) -> dict[str, str]:
    """What went wrong, by label, in `checks` on so many processes.

    Args:
        count: Of ranks.
        folder: To meet in.
        checks: A function of a module, which takes its rank and what attempts a check.
    """
    mp.start_processes(_work, args=(count, folder, checks), nprocs=count, start_method="spawn")
    found: dict[str, str] = {}
    for rank in range(count):
        found |= json.loads((folder / f"{rank}.json").read_text())
    return found


def _work(rank: int, count: int, folder: Path, checks: Callable[[int, Attempt], None]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=count, timeout=PATIENCE
    )
    failures: dict[str, str] = {}

    def attempt(label: str, check: Callable[..., None], *arguments: Any) -> None:
        try:
            check(*arguments)
        except Exception as error:
            failures[label] = f"rank {rank}: {error!r}"

    checks(rank, attempt)
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
