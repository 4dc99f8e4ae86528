"""What sharing a sequence costs: each exchange against the operator on one GPU, and a whole model.

Run on a machine with several GPUs:
pytest -n 0 -m benchmark -s tests/benchmarks/test_parallel_speed.py;
results/parallel.md keeps what it writes into the folder EVO2_BENCHMARK_RESULTS. It reads 2, 4 and 8
GPUs, as far as the machine has them; `-k` leaves some out, as in `-k "model or x8"`.

L positions, D channels, N GPUs.
"""

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from evo2cli import console
from hyenakernels import FIRFilters, ModalFilters, causal_attention, hyena_fir, hyena_modal
from hyenakernels.parallel import Sharding
from stripedhyena2 import ModelConfig
from stripedhyena2.operators import Attention, HyenaLI, HyenaSE
from stripedhyena2.parallelize import SharedSequence
from stripedhyena2.streaming import stream
from tests.benchmarks.gpu import DEVICE, Report, cell, draw_bf16
from tests.benchmarks.hyena import draw_parameters, random_model
from tests.benchmarks.inference import ids_of

ABOUT = """\
# Speed of shared sequences

Batch 1, bf16, D = 4,096; every GPU holds L / N neighbouring positions. SE has 7 taps, MR 128, LI 16
modes, all with a featurizer of 3; attention has 32 heads. Times are medians of the slowest GPU, in
milliseconds, of calls in a row; "speedup" is the time of the operator over the whole sequence on
one GPU over that of all GPUs together, forward and backward where both were measured; N would be
ideal, and "efficiency" is the speedup over N. "MiB sent" is what one GPU sends forward.

The model is the first 8 blocks of Evo 2 7B with random weights (1.6 B parameters), one window;
backward recomputes every block. "efficiency" is GPUs times seconds of the fewest GPUs that
were read over those of the row.

Command: `pytest -m benchmark -s tests/benchmarks/test_parallel_speed.py`"""

COUNTS = [2, 4, 8]


@dataclass(frozen=True)
class Sizes:
    """What is read.

    Attributes:
        width: Channels of the operators.
        heads: Of attention.
        lengths: Positions.
        longest_alone: Positions that one GPU takes forward and backward; longer ones are only
            shared, and no attention alone is read on them, which takes minutes.
        readings: Of each time.
        seconds: Of a reading, at least: calls in a row hide Python's time.
        model: The slice.
    """

    width: int
    heads: int
    lengths: tuple[int, ...]
    longest_alone: int
    readings: int
    seconds: float
    model: ModelConfig


SIZES = Sizes(
    width=4096,
    heads=32,
    lengths=(131_072, 1_048_576),
    longest_alone=131_072,
    readings=5,
    seconds=0.1,
    model=ModelConfig(
        stripes="SMLASMLS",
        width=4096,
        num_heads=32,
        mlp_width=11_264,
        num_short_filter_groups=256,
        num_medium_filter_groups=256,
        context=1_048_576,
    ),
)
TOY = Sizes(
    width=256,
    heads=8,
    lengths=(128, 256),
    longest_alone=128,
    readings=1,
    seconds=0.0,
    model=ModelConfig(
        stripes="SMLA",
        width=256,
        num_heads=8,
        mlp_width=48,
        num_short_filter_groups=16,
        num_medium_filter_groups=16,
        context=1024,
    ),
)
Say = Callable[[dict[str, Any]], None]
Run = Callable[..., Tensor]


def operators(sizes: Sizes) -> dict[str, tuple[Run, dict[str, Run], int]]:
    """Of each kind: alone, by scheme, and how many inputs of D channels it has."""
    found: dict[str, tuple[Run, dict[str, Run], int]] = {}
    for kind, op, schemes in (
        ("SE", hyena_fir, HyenaSE.exchanges),
        ("MR", hyena_fir, HyenaSE.exchanges),
        ("LI", hyena_modal, HyenaLI.exchanges),
    ):
        record = ModalFilters if kind == "LI" else FIRFilters
        filters = record(*draw_parameters(kind, sizes.width, 3))
        found[kind] = (
            partial(_hyena, op, filters),
            {name: partial(_hyena, shared, filters) for name, shared in schemes.items()},
            3,
        )
    found["attention"] = (
        partial(_attend, causal_attention, sizes.heads),
        {
            name: partial(_attend, shared, sizes.heads)
            for name, shared in Attention.exchanges.items()
        },
        3,
    )
    return found


def _hyena(op: Run, filters: FIRFilters | ModalFilters, z_BLC: Tensor, **sharing: Any) -> Tensor:
    return op(z_BLC, filters, **sharing)[0]


def _attend(op: Run, heads: int, qkv_BLC: Tensor, **sharing: Any) -> Tensor:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in qkv_BLC.chunk(3, dim=2))
    return op(q, k, v, **sharing).transpose(1, 2).flatten(2)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes that this rank sends to others while inside."""
    sent: list[int] = []
    whole = {name: getattr(dist, name) for name in ("P2POp", "all_to_all_single", "all_gather")}

    def point(kind: Any, rows: Tensor, **where: Any) -> Any:
        if kind is dist.isend:
            sent.append(rows.nbytes)
        return whole["P2POp"](kind, rows, **where)

    def swap(y: Tensor, x: Tensor, received: Any, given: list[int], **where: Any) -> Any:
        own = given[dist.get_rank(where.get("group"))]
        sent.append((sum(given) - own) * x.element_size())
        return whole["all_to_all_single"](y, x, received, given, **where)

    def gather(parts: list[Tensor], x: Tensor, **where: Any) -> Any:
        sent.append((len(parts) - 1) * x.nbytes)
        return whole["all_gather"](parts, x, **where)

    dist.P2POp, dist.all_to_all_single, dist.all_gather = point, swap, gather
    try:
        yield sent
    finally:
        for name, function in whole.items():
            setattr(dist, name, function)


def seconds(run: Callable[[], object], sizes: Sizes, readings: int | None = None) -> float:
    """Of a warm call, median over readings; of each reading, the slowest rank counts."""
    run()
    calls = max(1, round(sizes.seconds / once(run)))
    return statistics.median(once(run, calls) for _ in range(readings or sizes.readings))


def once(run: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call, of several in a row, on the slowest rank."""
    synchronize()
    dist.barrier()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize()
    took = torch.tensor(time.perf_counter() - started, device=DEVICE.type)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took.item()) / calls


def synchronize() -> None:
    """Wait for this rank's GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def read(run: Run, sizes: Sizes, shape: tuple[int, ...], **sharing: Any) -> tuple[float, float]:
    """Seconds forward, and forward and backward; NaN where memory does not suffice, on any rank."""
    readings = []
    for backward in (False, True):
        try:
            x = draw_bf16(*shape).requires_grad_(backward)

            def call(x: Tensor = x, backward: bool = backward) -> None:
                with torch.set_grad_enabled(backward):
                    y = run(x, **sharing)
                if backward:
                    torch.autograd.grad(y, x, torch.ones_like(y))

            readings.append(seconds(call, sizes))
        except torch.OutOfMemoryError:
            readings.append(float("nan"))
        x = None
        torch.cuda.empty_cache()
    return readings[0], readings[1]


def read_operators(say: Say, sizes: Sizes) -> None:
    """Every scheme of every kind, and beside it the operator on one GPU."""
    rank, count = dist.get_rank(), dist.get_world_size()
    for length in sizes.lengths:
        sharding = Sharding.even(length, count)
        for kind, (alone, schemes, parts) in operators(sizes).items():
            if kind == "attention" and length > sizes.longest_alone:
                continue
            about = {"length": length, "kind": kind}
            whole = (1, length, parts * sizes.width)
            single = read(alone, sizes, whole)  # by every rank, on its own
            say({**about, "gpus": 1, "scheme": "", "seconds": single})
            for name, run in schemes.items():
                shape = (1, sharding.lengths[rank], parts * sizes.width)
                readings = read(run, sizes, shape, sharding=sharding)
                with counted() as sent, torch.no_grad():
                    run(draw_bf16(*shape), sharding=sharding)
                say(
                    {
                        **about,
                        "gpus": count,
                        "scheme": name,
                        "seconds": readings,
                        "sent": sum(sent),
                    }
                )


def read_model(say: Say, sizes: Sizes) -> None:
    """A training step's passes over the slice: shared, and on one GPU where it fits."""
    count = dist.get_world_size()
    model = random_model(sizes.model)
    model.activation_checkpointing = 1
    shared = SharedSequence(None)
    shared.put_on(model)
    alone = [(length, False) for length in sizes.lengths if length <= sizes.longest_alone]
    for length, together in (*alone, *((length, True) for length in sizes.lengths)):
        torch.cuda.empty_cache()
        shared.dissolve()
        ids = ids_of(1, length)
        own = shared.cut(ids) if together else ids
        _forget_peak()

        def call(own: Tensor = own) -> None:
            model.zero_grad()
            model(own).logsumexp(2).sum().backward()

        try:
            took = seconds(call, sizes, None if length <= sizes.longest_alone else 1)
        except torch.OutOfMemoryError:
            took = float("nan")  # ranks are alike: none waits for another
        _tell_model(say, "forward + backward", length, count if together else 1, took)
    shared.dissolve()
    model.zero_grad()
    torch.cuda.empty_cache()
    if count > min(COUNTS):  # one GPU's pass was read with fewer
        return
    ids = ids_of(1, sizes.lengths[-1])
    _forget_peak()
    took = once(lambda: deque(stream(model, ids), maxlen=0))
    _tell_model(say, "forward, streamed", ids.shape[1], 1, took)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _tell_model(say: Say, what: str, length: int, gpus: int, took: float) -> None:
    peak = torch.cuda.max_memory_allocated() / 2**30
    say({"what": what, "length": length, "gpus": gpus, "seconds": took, "gib": peak})


def work(rank: int, count: int, folder: str, what: str, sizes: Sizes) -> None:
    """What a rank does; the first one leaves a line for each reading in `folder`/`what`.jsonl."""
    meet = f"file://{folder}/meet-{what}"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
        dist.init_process_group("nccl", meet, rank=rank, world_size=count, device_id=device)
    else:
        dist.init_process_group("gloo", meet, rank=rank, world_size=count)
    lines = Path(folder, f"{what}.jsonl")

    def say(entry: dict[str, Any]) -> None:
        if rank == 0:
            with lines.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            console.say(f"{time.perf_counter():.0f} s {json.dumps(entry)}")

    {"operators": read_operators, "model": read_model}[what](say, sizes)
    dist.destroy_process_group()


def entries(
    folder: Path, what: str, count: int, sizes: Sizes = SIZES, start_method: str = "spawn"
) -> list[dict[str, Any]]:
    mp.start_processes(
        work, args=(count, str(folder), what, sizes), nprocs=count, start_method=start_method
    )
    return [json.loads(line) for line in (folder / f"{what}.jsonl").read_text().splitlines()]


@dataclass
class Found:
    """The tables of all numbers of GPUs; a later number adds to what earlier ones have read."""

    report: Report
    speedups: dict[tuple[str, int, str], dict[int, float]] = field(default_factory=dict)
    model: dict[tuple[str, int], dict[int, float]] = field(default_factory=dict)

    def add_operators(self, read: list[dict[str, Any]]) -> None:
        """A row for each reading, and the efficiency of each scheme by number of GPUs."""
        columns = ["L", "scheme", "GPUs", "forward", "forward + backward", "speedup", "MiB sent"]
        single = (nan, nan)
        for entry in read:
            forward, both = entry["seconds"]
            speedup = nan
            if entry["gpus"] == 1:
                single = (forward, both)
            else:
                backward = single[1] / both
                speedup = single[0] / forward if isnan(backward) else backward
                key = (entry["kind"], entry["length"], entry["scheme"])
                self.speedups.setdefault(key, {})[entry["gpus"]] = speedup
            row = [f"{entry['length']:,}", entry["scheme"], str(entry["gpus"])]
            row += [cell(1e3 * forward, 2), cell(1e3 * both, 2), cell(speedup, 2)]
            row += [cell(entry["sent"] / 2**20, 1) if "sent" in entry else ""]
            self.report.add(entry["kind"], columns, row)
        self.report.tables.pop("Efficiency", None)
        for (kind, length, scheme), by_count in self.speedups.items():
            shares = [cell(by_count.get(count, nan) / count, 2) for count in COUNTS]
            columns = ["operator", "L", "scheme", *(f"{count} GPUs" for count in COUNTS)]
            self.report.add("Efficiency", columns, [kind, f"{length:,}", scheme, *shares])

    def add_model(self, read: list[dict[str, Any]]) -> None:
        """A row for each reading."""
        columns = ["passes", "L", "GPUs", "seconds", "GiB a GPU", "efficiency"]
        for entry in read:
            what, length, gpus, took = (entry[key] for key in ("what", "length", "gpus", "seconds"))
            by_count = self.model.setdefault((what, length), {})
            by_count[gpus] = took
            fewest = min(by_count)
            share = nan if gpus == fewest else fewest * by_count[fewest] / (gpus * took)
            row = [what, f"{length:,}", str(gpus), cell(took, 2), cell(entry["gib"], 1)]
            self.report.add("Model", columns, [*row, cell(share, 2)])


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[Found]:
    report = Report("parallel.md", ABOUT, request.path.parent / "results")
    yield Found(report)
    console.say(f"{report.path}\n{report}")


@pytest.fixture(params=COUNTS, ids="x{}".format)
def count(request: pytest.FixtureRequest) -> int:
    """A number of GPUs that this machine has."""
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"it needs {request.param} GPUs")
    return int(request.param)


@pytest.mark.benchmark
def test_exchanges(tmp_path: Path, found: Found, count: int) -> None:
    found.add_operators(entries(tmp_path, "operators", count))


@pytest.mark.benchmark
def test_model(tmp_path: Path, found: Found, count: int) -> None:
    found.add_model(entries(tmp_path, "model", count))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it tries the benchmark without GPUs")
def test_a_toy_is_read(tmp_path: Path) -> None:
    """On two CPU ranks: every scheme, and the slice."""
    found = Found(Report("parallel.md", ABOUT, tmp_path))
    found.add_operators(entries(tmp_path, "operators", 2, TOY, "forkserver"))
    found.add_model(entries(tmp_path, "model", 2, TOY, "forkserver"))
    schemes = {kind: len(each) for kind, (_, each, _) in operators(TOY).items()}
    assert len(found.speedups) == sum(schemes.values()) * 2 - schemes["attention"]
    assert all(set(by_count) == {2} for by_count in found.speedups.values())
    assert found.model.keys() == {
        ("forward + backward", 128),
        ("forward + backward", 256),
        ("forward, streamed", 256),
    }


def test_efficiency_is_of_one_gpu_or_of_the_fewest(tmp_path: Path) -> None:
    found = Found(Report("parallel.md", ABOUT, tmp_path))
    reading = {"kind": "SE", "length": 8, "gpus": 1, "scheme": "", "seconds": (1.0, 6.0)}
    shared = {**reading, "gpus": 4, "scheme": "halo", "seconds": (0.5, 2.0), "sent": 2**20}
    found.add_operators([reading, shared, {**shared, "scheme": "fft", "seconds": (0.5, nan)}])
    assert found.report.tables["Efficiency"][1:] == [
        ["SE", "8", "halo", "", "0.75", ""],
        ["SE", "8", "fft", "", "0.50", ""],
    ]
    assert [row[-2:] for row in found.report.tables["SE"][1:]] == [
        ["", ""],
        ["3.00", "1.0"],
        ["2.00", "1.0"],
    ]
    for gpus, took in ((2, 8.0), (8, 4.0)):
        found.add_model([{"what": "both", "length": 8, "gpus": gpus, "seconds": took, "gib": 1.0}])
    assert [row[-1] for row in found.report.tables["Model"][1:]] == ["", "0.50"]
