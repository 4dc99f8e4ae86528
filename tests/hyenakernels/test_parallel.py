"""Every context-parallel scheme is the single-device operator, gradients included (4 ranks)."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from hyenakernels import hyena_fir
from hyenakernels import parallel as cp

WIDTH, GROUPS = 16, 8
LENGTHS = {
    2: [[40, 33], [3, 30], [30, 2]],
    4: [[20, 31, 17, 25], [2, 1, 3, 30], [25, 1, 2, 1]],
}


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Name: local op, parallel op, shard inputs, whole inputs (filters, pasts), numbers of shard inputs.
TAPS = random(3 * WIDTH, 3, seed=2)
FIR = [random(GROUPS, 7, seed=3), random(WIDTH, seed=4)]
FIR_PASTS = [random(2, 2, 3 * WIDTH, seed=5), random(2, 6, WIDTH, seed=6)]
PIPELINED = partial(cp.hyena_fir_all_to_all, num_chunks=2)
CASES: dict[str, tuple[Any, Any, int, int, list[Tensor]]] = {
    "fir-halo": (hyena_fir, cp.hyena_fir_halo, 1, 3, [TAPS, *FIR, *FIR_PASTS]),
    "fir-overlapped": (hyena_fir, cp.hyena_fir_overlapped, 1, 3, [TAPS, *FIR, *FIR_PASTS]),
    "fir-channels": (hyena_fir, cp.hyena_fir_all_to_all, 1, 3, [TAPS, *FIR, *FIR_PASTS]),
    "fir-pipelined": (hyena_fir, PIPELINED, 1, 3, [TAPS, *FIR, *FIR_PASTS]),
}


def check(case: str, sharding: cp.Sharding, dtype: torch.dtype, group: Any) -> None:
    op, parallel_op, num_shards, parts, weights = CASES[case]
    rank, count, length = dist.get_rank(group), dist.get_world_size(group), sum(sharding.lengths)
    whole = [random(2, length, WIDTH * parts, seed=10 + i).to(dtype) for i in range(num_shards)]
    inputs = [x.requires_grad_(True) for x in whole + [w.to(dtype) for w in weights]]
    expected = op(*inputs)
    seeds = [random(*y.shape, seed=20 + i).to(dtype) for i, y in enumerate(expected)]
    wanted = torch.autograd.grad(expected, inputs, seeds)

    shards = [sharding.cut(x.detach(), rank).requires_grad_(True) for x in whole]
    own = [w.detach().to(dtype).clone().requires_grad_(True) for w in weights]
    actual = parallel_op(*shards, *own, sharding=sharding, group=group)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5

    def same(found: Tensor, right: Tensor) -> None:
        bound = tolerance * max(float(right.detach().abs().max()), 1.0)
        torch.testing.assert_close(found, right, rtol=0, atol=bound)

    same(actual[0], sharding.cut(expected[0], rank))
    outputs, ours = [actual[0]], [sharding.cut(seeds[0], rank)]
    if rank == count - 1:
        for found, right, seed in zip(actual[1:], expected[1:], seeds[1:], strict=True):
            same(found, right)
            outputs.append(found)
            ours.append(seed)
    else:
        outputs += [y for y in actual[1:] if y.requires_grad]
        ours += [torch.zeros_like(y) for y in outputs[1:]]
    found = torch.autograd.grad(outputs, shards + own, ours, allow_unused=True)
    for i, (gradient, right) in enumerate(zip(found, wanted, strict=True)):
        if i < num_shards:
            same(gradient, sharding.cut(right, rank))
        else:
            total = torch.zeros_like(right) if gradient is None else gradient.clone()
            dist.all_reduce(total, group=group)
            same(total, right)


def shardings(count: int) -> list[cp.Sharding]:
    return [cp.Sharding.contiguous(each) for each in LENGTHS[count]]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    groups = {2: dist.new_group([1, 3]), 4: dist.group.WORLD}
    failures: dict[str, str] = {}
    for case in CASES:
        for count, group in groups.items():
            if count == 2 and rank not in (1, 3):
                continue
            try:
                for sharding in shardings(count):
                    for dtype in (torch.float64, torch.float32):
                        check(case, sharding, dtype, group)
            except Exception as error:
                failures[f"{case}-{count}"] = f"rank {rank}: {error!r}"
    Path(folder, f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in one run of all cases on four processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, args=(str(folder),), nprocs=4, start_method="spawn")
    found: dict[str, str] = {}
    for rank in range(4):
        found |= json.loads((folder / f"{rank}.json").read_text())
    return found


@pytest.mark.parametrize("count", [2, 4], ids=lambda count: f"N{count}")
@pytest.mark.parametrize("case", CASES)
def test_shards_give_the_whole(failures: dict[str, str], case: str, count: int) -> None:
    assert f"{case}-{count}" not in failures, failures[f"{case}-{count}"]


def test_cut_and_join_are_inverse() -> None:
    x = random(2, 23, 3, seed=1)
    for sharding in (cp.Sharding.zigzag(23, 4), cp.Sharding.contiguous([5, 1, 17])):
        shards = [sharding.cut(x, rank) for rank in range(len(sharding.spans))]
        assert torch.equal(sharding.join(shards), x)
        for rank, shard in enumerate(shards):
            assert torch.equal(x[:, sharding.positions(rank)], shard)
