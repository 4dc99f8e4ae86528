"""What sharing a sequence costs: each exchange against the operator on one GPU, and a whole model.

Run on a machine with several GPUs: pytest -m benchmark -s tests/benchmarks/test_parallel_speed.py;
results/parallel.md keeps what it writes into the folder EVO2_BENCHMARK_RESULTS.

L positions, D channels, N GPUs.
"""

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from tests.benchmarks.gpu import Report, cell
from tests.benchmarks.hyena import draw_parameters, random_model

ABOUT = """\
# Speed of shared sequences

Batch 1, bf16, D = 4,096; every GPU holds L / N neighbouring positions. SE has 7 taps, MR 128, LI 16
modes, all with a featurizer of 3; attention has 32 heads. Times are medians of the slowest GPU, in
milliseconds, of calls in a row; "speedup" is the time of the operator over the whole sequence on
one GPU over that of all GPUs together, forward and backward where both were measured; N would be
ideal. "MiB sent" is what one GPU sends forward.

The model is the first 8 blocks of Evo 2 7B with random weights (1.6 B parameters), one window;
backward recomputes every block. "efficiency" is the time on one GPU over that of all GPUs together
times their number.

Command: `pytest -m benchmark -s tests/benchmarks/test_parallel_speed.py`"""

WIDTH, HEADS = 4096, 32
LENGTHS = [131_072, 1_048_576]
LONGEST_ATTENTION = 131_072  # beyond, one reading takes minutes
READINGS, SHORTEST = 5, 0.1  # of so many seconds at least: calls in a row hide Python's time
SLICE = ModelConfig(
    stripes="SMLASMLS",
    width=WIDTH,
    num_heads=HEADS,
    mlp_width=11_264,
    num_short_filter_groups=256,
    num_medium_filter_groups=256,
    context=1_048_576,
)

Run = Callable[..., Tensor]


def operators() -> dict[str, tuple[Run, dict[str, Run], int]]:
    """Of each kind: alone, by scheme, and how many inputs of D channels it has."""
    found: dict[str, tuple[Run, dict[str, Run], int]] = {}
    for kind, op, schemes in (
        ("SE", hyena_fir, HyenaSE.exchanges),
        ("MR", hyena_fir, HyenaSE.exchanges),
        ("LI", hyena_modal, HyenaLI.exchanges),
    ):
        record = ModalFilters if kind == "LI" else FIRFilters
        filters = record(*draw_parameters(kind, WIDTH, 3))
        found[kind] = (
            partial(_hyena, op, filters),
            {name: partial(_hyena, shared, filters) for name, shared in schemes.items()},
            3,
        )
    found["attention"] = (
        partial(_attend, causal_attention),
        {name: partial(_attend, shared) for name, shared in Attention.exchanges.items()},
        3,
    )
    return found


def _hyena(op: Run, filters: FIRFilters | ModalFilters, z_BLC: Tensor, **sharing: Any) -> Tensor:
    return op(z_BLC, filters, **sharing)[0]


def _attend(op: Run, qkv_BLC: Tensor, **sharing: Any) -> Tensor:
    q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in qkv_BLC.chunk(3, dim=2))
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


def seconds(run: Callable[[], object], readings: int = READINGS) -> float:
    """Of a warm call, median over readings; of each reading, the slowest rank counts."""
    run()
    calls = max(1, round(SHORTEST / once(run)))
    return statistics.median(once(run, calls) for _ in range(readings))


def once(run: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call, of several in a row, on the slowest rank."""
    torch.cuda.synchronize()
    dist.barrier()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    torch.cuda.synchronize()
    took = torch.tensor(time.perf_counter() - started, device="cuda")
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took.item()) / calls


def read(run: Run, shape: tuple[int, ...], **sharing: Any) -> tuple[float, float]:
    """Seconds forward, and forward and backward; NaN where memory does not suffice, on any rank."""
    readings = []
    for backward in (False, True):
        try:
            x = torch.randn(shape, dtype=torch.bfloat16, device="cuda").requires_grad_(backward)

            def call(x: Tensor = x, backward: bool = backward) -> None:
                with torch.set_grad_enabled(backward):
                    y = run(x, **sharing)
                if backward:
                    torch.autograd.grad(y, x, torch.ones_like(y))

            readings.append(seconds(call))
        except torch.OutOfMemoryError:
            readings.append(float("nan"))
        x = None
        torch.cuda.empty_cache()
    return readings[0], readings[1]


def read_operators(say: Callable[[dict[str, Any]], None]) -> None:
    """Every scheme of every kind, and beside it the operator on one GPU."""
    rank, count = dist.get_rank(), dist.get_world_size()
    for length in LENGTHS:
        sharding = Sharding.even(length, count)
        for kind, (alone, schemes, parts) in operators().items():
            if kind == "attention" and length > LONGEST_ATTENTION:
                continue
            single = read(alone, (1, length, parts * WIDTH))  # by every rank, on its own
            say({"length": length, "kind": kind, "scheme": "one GPU", "seconds": single})
            for name, run in schemes.items():
                shape = (1, sharding.lengths[rank], parts * WIDTH)
                readings = read(run, shape, sharding=sharding)
                with counted() as sent, torch.no_grad():
                    own = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
                    run(own, sharding=sharding)
                del own
                say(
                    {
                        "length": length,
                        "kind": kind,
                        "scheme": name,
                        "seconds": readings,
                        "sent": sum(sent),
                    }
                )


def read_model(say: Callable[[dict[str, Any]], None]) -> None:
    """A training step's passes over the slice: shared, and on one GPU where it fits."""
    model = random_model(SLICE)
    model.activation_checkpointing = 1
    shared = SharedSequence(None)
    shared.put_on(model)
    for length, together in ((131_072, False), (131_072, True), (1_048_576, True)):
        torch.cuda.empty_cache()
        shared.dissolve()
        ids = torch.randint(65, 85, (1, length), device="cuda")
        own = shared.cut(ids) if together else ids
        torch.cuda.reset_peak_memory_stats()

        def call(own: Tensor = own) -> None:
            model.zero_grad()
            model(own).logsumexp(2).sum().backward()

        try:
            took = seconds(call, READINGS if length <= LONGEST_ATTENTION else 1)
        except torch.OutOfMemoryError:
            took = float("nan")  # ranks are alike: none waits for another
        _tell_model(
            say, "forward + backward", length, dist.get_world_size() if together else 1, took
        )
    shared.dissolve()
    model.zero_grad()
    torch.cuda.empty_cache()
    ids = torch.randint(65, 85, (1, 1_048_576), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    took = once(lambda: deque(stream(model, ids), maxlen=0))
    _tell_model(say, "forward, streamed", ids.shape[1], 1, took)


def _tell_model(
    say: Callable[[dict[str, Any]], None], what: str, length: int, gpus: int, took: float
) -> None:
    peak = torch.cuda.max_memory_allocated() / 2**30
    say({"what": what, "length": length, "gpus": gpus, "seconds": took, "gib": peak})


def work(rank: int, count: int, folder: str, what: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl",
        init_method=f"file://{folder}/meet-{what}",
        rank=rank,
        world_size=count,
        device_id=torch.device("cuda", rank),
    )
    lines = Path(folder, f"{what}.jsonl")

    def say(entry: dict[str, Any]) -> None:
        if rank == 0:
            with lines.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            console.say(f"{time.perf_counter():.0f} s {json.dumps(entry)}")

    {"operators": read_operators, "model": read_model}[what](say)
    dist.destroy_process_group()


needs_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it needs several GPUs")


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report("parallel.md", ABOUT, request.path.parent / "results")
    yield report
    console.say(f"{report.path}\n{report}")


def entries(folder: Path, what: str) -> list[dict[str, Any]]:
    count = torch.cuda.device_count()
    mp.start_processes(work, args=(count, str(folder), what), nprocs=count, start_method="spawn")
    return [json.loads(line) for line in (folder / f"{what}.jsonl").read_text().splitlines()]


@pytest.mark.benchmark
@needs_gpus
def test_exchanges(tmp_path: Path, report: Report) -> None:
    columns = ["L", "scheme", "forward", "forward + backward", "speedup", "MiB sent"]
    single = (0.0, 0.0)
    for entry in entries(tmp_path, "operators"):
        forward, both = entry["seconds"]
        if "sent" not in entry:
            single, speedup, sent = (forward, both), "", ""
        else:
            first, second = (
                (single[1], both)
                if both == both and single[1] == single[1]
                else (
                    single[0],
                    forward,
                )
            )
            speedup, sent = cell(first / second, 2), cell(entry["sent"] / 2**20, 1)
        row = [f"{entry['length']:,}", entry["scheme"], cell(1e3 * forward, 2), cell(1e3 * both, 2)]
        report.add(entry["kind"], columns, [*row, speedup, sent])


@pytest.mark.benchmark
@needs_gpus
def test_model(tmp_path: Path, report: Report) -> None:
    columns = ["passes", "L", "GPUs", "seconds", "GiB a GPU", "efficiency"]
    alone: dict[tuple[str, int], float] = {}
    for entry in entries(tmp_path, "model"):
        what, length, gpus, took = (entry[key] for key in ("what", "length", "gpus", "seconds"))
        if gpus == 1:
            alone[what, length] = took
        efficiency = alone.get((what, length), float("nan")) / (gpus * took)
        row = [what, f"{length:,}", str(gpus), cell(took, 2), cell(entry["gib"], 1)]
        report.add("Model", columns, [*row, cell(efficiency, 2) if gpus > 1 else ""])
