"""What Python costs a forward and backward pass, beside the time of the device.

Run: pytest -m benchmark -s tests/benchmarks/test_host_speed.py; it writes host.md into the folder
EVO2_BENCHMARK_RESULTS.

B batch, L length, D channels, C = 3D channels [x2 | x1 | v].
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor

from evo2cli import console
from stripedhyena2 import ModelConfig
from stripedhyena2.float8.training import use_float8
from stripedhyena2.model import StripedHyena2
from stripedhyena2.parametrization import trainable
from tests.benchmarks.gpu import DEVICE, Report, cell, measure, needs_gpu
from tests.benchmarks.hyena import GROUP_SIZE, KINDS, draw_parameters, operator

ABOUT = """\
# Host time of operators and blocks

Forward and backward passes from Python, batch 1, bf16, parameters in fp32, in microseconds a call.
"host" is the time in which Python queues a call without waiting for it, "device" that of its
kernels when they are queued ahead, "together" that from call to call in a row of them. "beyond" is
together less device: what a faster host would save. Operators have the featurizer of 3 taps; a
block is one of 7B in its training form, under autocast.

Command: `pytest -m benchmark -s tests/benchmarks/test_host_speed.py`"""

WIDTH = 4096
LENGTHS = [2048, 8192]
CALLS = 10  # in a row: their kernels should fit the launch queue, which holds about a thousand
ROWS = 15

BLOCKS = ModelConfig(
    stripes="SMLA",
    width=WIDTH,
    num_heads=32,
    mlp_width=11_264,
    num_short_filter_groups=WIDTH // GROUP_SIZE,
    num_medium_filter_groups=WIDTH // GROUP_SIZE,
    context=8192,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    report = Report("host.md", ABOUT, otherwise=tmp_path_factory.mktemp("results"))
    yield report
    console.write(str(report))


@pytest.fixture(scope="module", params=["bf16", "FP8"])
def model(request: pytest.FixtureRequest) -> tuple[str, StripedHyena2]:
    """Four blocks of 7B in their training form, and the precision of their products."""
    model = StripedHyena2.from_seed(BLOCKS, seed=0).to(DEVICE)
    trainable(model, BLOCKS.context)
    if request.param == "FP8":
        use_float8(model)
    return request.param, model


def microseconds_a_call(run: Callable[[], object]) -> tuple[float, float]:
    """The time in which Python queues a call, and that from call to call; medians over rows."""
    run()  # compiles
    queued, together = [], []
    for _ in range(ROWS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            run()
        queued.append(time.perf_counter() - started)
        torch.cuda.synchronize()
        together.append(time.perf_counter() - started)
    scale = 1e6 / CALLS
    return scale * statistics.median(queued), scale * statistics.median(together)


def add_row(
    report: Report,
    table: str,
    name: str,
    forward: Callable[[Tensor], Tensor],
    weights: Iterable[Tensor],
    shape: tuple[int, int, int],
) -> None:
    """Measure the passes of a function of one tensor."""
    x_BLC = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    leaves, dy_BLD = [x_BLC, *weights], torch.randn_like(forward(x_BLC))

    def both() -> object:
        return torch.autograd.grad(forward(x_BLC), leaves, dy_BLD)

    device = measure(lambda _: both(), lambda: (x_BLC,))
    assert not device.failure
    host, together = microseconds_a_call(both)
    on_device = 1e3 * device.milliseconds
    times = (host, on_device, together, together - on_device)
    columns = ["", "host", "device", "together", "beyond"]
    report.add(table, columns, [name, *(cell(value, digits=0) for value in times)])


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_operators(report: Report, length: int, kind: str) -> None:
    run, parameters = operator(kind), draw_parameters(kind, WIDTH, 3)
    table, shape = f"Operators, L = {length:,}, D = {WIDTH:,}", (1, length, 3 * WIDTH)
    add_row(report, table, kind, lambda z_BLC: run(z_BLC, *parameters), parameters, shape)


@needs_gpu
@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "index", range(len(BLOCKS.stripes)), ids=lambda index: BLOCKS.stripes[index]
)
def test_blocks(report: Report, model: tuple[str, StripedHyena2], length: int, index: int) -> None:
    products, blocks = model[0], model[1].blocks
    table, shape = f"Blocks, {products}, L = {length:,}, D = {WIDTH:,}", (1, length, WIDTH)

    def forward(x_BLD: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            y_BLD: Tensor = blocks[index](x_BLD, None)[0]
            return y_BLD

    add_row(report, table, BLOCKS.stripes[index], forward, blocks[index].parameters(), shape)
