"""Every context-parallel scheme equals the operator on one device, gradients included."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hyenakernels import FIRFilters, HyenaPast, ModalFilters, hyena_fir, hyena_modal
from hyenakernels import parallel as cp
from hyenakernels.parallel import fourier
from hyenakernels.parallel.butterfly import Hypercube
from tests.hyenakernels.tensors import random
from tests.ranks import Attempt, failures_on_ranks

WIDTH, GROUPS = 16, 8
# The groups, by their number of ranks: the first among 4 processes, the others among 8.
RANKS = {2: [1, 3], 4: [4, 5, 6, 7], 8: [0, 1, 2, 3, 4, 5, 6, 7]}
LENGTHS = {
    2: [[40, 33], [3, 30], [30, 2]],
    4: [[20, 31, 17, 25], [2, 1, 3, 30], [25, 1, 2, 1]],
    8: [[5] * 8, [3, 1, 9, 2, 4, 1, 1, 6]],
}


@dataclass(frozen=True)
class Case:
    """A scheme: its operator, its parallel form, and tensors: filters, then the past."""

    op: Any
    parallel_op: Any
    tensors: list[Tensor]

    def run(self, op: Any, z: Tensor, *tensors: Tensor, **sharing: Any) -> list[Tensor]:
        """y, and both tensors of the past."""
        *filters, z_past, inner = tensors
        record = FIRFilters if self.op is hyena_fir else ModalFilters
        y, past = op(z, record(*filters), HyenaPast(z_past, inner), **sharing)
        return [y, past.featurizer_BPC, past.inner]


TAPS = random(3 * WIDTH, 3, seed=2)
SKIP = random(WIDTH, seed=4)
PAST = random(2, 2, 3 * WIDTH, seed=5)
FIR = [TAPS, random(GROUPS, 7, seed=3), SKIP, PAST, random(2, 6, WIDTH, seed=6)]
# From poles that decay within a row to some that never do.
POLES = -torch.logspace(1, -9, 3 * WIDTH, dtype=torch.float64).view(WIDTH, 3)
MODAL = [TAPS, POLES, random(WIDTH, 3, seed=8), SKIP, PAST, random(2, WIDTH, 3, seed=9)]


def fft_in_parts(*inputs: Any, **sharing: Any) -> tuple[Tensor, HyenaPast]:
    """A few channels at a time, as for long sequences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fourier, "MAX_NUMBERS", 400)
        return cp.hyena_modal_fft(*inputs, **sharing)


CASES = {
    "fir-halo": Case(hyena_fir, cp.hyena_fir_halo, FIR),
    "fir-overlapped": Case(hyena_fir, cp.hyena_fir_overlapped, FIR),
    "fir-channels": Case(hyena_fir, cp.hyena_fir_all_to_all, FIR),
    "fir-pipelined": Case(hyena_fir, partial(cp.hyena_fir_all_to_all, num_chunks=2), FIR),
    "modal-states": Case(hyena_modal, cp.hyena_modal_states, MODAL),
    "modal-channels": Case(hyena_modal, cp.hyena_modal_all_to_all, MODAL),
    "modal-pipelined": Case(hyena_modal, partial(cp.hyena_modal_all_to_all, num_chunks=2), MODAL),
    "modal-fft": Case(hyena_modal, cp.hyena_modal_fft, MODAL),
    "modal-fft-in-parts": Case(hyena_modal, fft_in_parts, MODAL),
}
# Eight ranks have rounds of butterflies that fewer ranks do not have.
RUNS = [(case, count) for case in CASES for count in RANKS if count < 8 or case == "modal-fft"]


def check(case: str, sharding: cp.Sharding, dtype: torch.dtype, group: Any) -> None:
    scheme = CASES[case]
    rank, count, length = dist.get_rank(group), dist.get_world_size(group), sum(sharding.lengths)
    whole = [x.to(dtype) for x in (random(2, length, 3 * WIDTH, seed=10), *scheme.tensors)]
    inputs = [x.requires_grad_(True) for x in whole]
    expected = scheme.run(scheme.op, *inputs)
    seeds = [random(*y.shape, seed=20 + i).to(dtype) for i, y in enumerate(expected)]
    wanted = torch.autograd.grad(expected, inputs, seeds)

    z, *filters = (x.detach() for x in whole)
    own = [x.clone().requires_grad_(True) for x in (sharding.cut(z, rank), *filters)]
    actual = scheme.run(scheme.parallel_op, *own, sharding=sharding, group=group)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6

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
    found = torch.autograd.grad(outputs, own, ours, allow_unused=True)
    same(found[0], sharding.cut(wanted[0], rank))
    for gradient, right in zip(found[1:], wanted[1:], strict=True):
        # The collective adds the elements in memory order, so the layout must be that of all ranks.
        total = torch.zeros(right.shape, dtype=dtype)
        if gradient is not None:
            total += gradient
        dist.all_reduce(total, group=group)
        same(total, right)


def shardings(count: int) -> list[cp.Sharding]:
    return [cp.Sharding.contiguous(each) for each in LENGTHS[count]]


def checks(counts: tuple[int, ...], rank: int, attempt: Attempt) -> None:
    groups = {count: dist.new_group(RANKS[count]) for count in counts}

    def check_all(case: str, count: int) -> None:
        for sharding in shardings(count):
            for dtype in (torch.float64, torch.float32):
                check(case, sharding, dtype, groups[count])

    for case, count in RUNS:
        if count in counts and rank in RANKS[count]:
            attempt(f"{case}-{count}", check_all, case, count)


@pytest.fixture(scope="module")
def failures_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The errors of one run of all cases with two ranks."""
    return failures_on_ranks(4, tmp_path_factory.mktemp("two"), partial(checks, (2,)))


@pytest.fixture(scope="module")
def failures_of_more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The errors of one run of all cases with four and eight ranks."""
    return failures_on_ranks(8, tmp_path_factory.mktemp("more"), partial(checks, (4, 8)))


@pytest.mark.parametrize("case", CASES)
def test_two_shards_give_the_whole(failures_of_two: dict[str, str], case: str) -> None:
    assert f"{case}-2" not in failures_of_two, failures_of_two[f"{case}-2"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "count"), [run for run in RUNS if run[1] > 2], ids=str)
def test_more_shards_give_the_whole(
    failures_of_more: dict[str, str], case: str, count: int
) -> None:
    assert f"{case}-{count}" not in failures_of_more, failures_of_more[f"{case}-{count}"]


def test_cut_and_join_are_inverse() -> None:
    x = random(2, 23, 3, seed=1)
    for sharding in (cp.Sharding.zigzag(23, 4), cp.Sharding.contiguous([5, 1, 17])):
        shards = [sharding.cut(x, rank) for rank in range(len(sharding.spans))]
        assert torch.equal(sharding.join(shards), x)
        for rank, shard in enumerate(shards):
            assert torch.equal(x[:, sharding.positions(rank)], shard)


def test_butterflies_need_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two as the number of ranks, the group has 6"):
        Hypercube(rank=0, num_ranks=6, num_rows=4, group=None)
