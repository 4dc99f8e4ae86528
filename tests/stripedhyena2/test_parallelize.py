"""A model whose sequences lie on several ranks is the model of one: outputs, loss, gradients."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.operators import Attention, HyenaLI, HyenaSE
from stripedhyena2.parallelize import Schemes, SharedSequence, check_schemes
from tests.ranks import Attempt, failures_on_ranks

SHAPE = ModelConfig(
    stripes="SMLAS",
    width=32,
    num_heads=4,
    mlp_width=48,
    num_short_filter_groups=16,
    num_medium_filter_groups=16,
    context=256,
)

DEFAULT = Schemes()
SCHEMES = [
    *(Schemes(fir=name) for name in HyenaSE.exchanges),
    *(Schemes(modal=name) for name in HyenaLI.exchanges if name != DEFAULT.modal),
    *(Schemes(attention=name) for name in Attention.exchanges if name != DEFAULT.attention),
]
LENGTHS = [64, 37]


def name(scheme: Schemes, count: int, checkpointing: int) -> str:
    parts = (scheme.fir, scheme.modal, scheme.attention)
    return f"{'-'.join(parts)}-N{count}-recomputed{checkpointing}"


CASES = [*((scheme, 4, 0) for scheme in SCHEMES), (DEFAULT, 2, 0), (DEFAULT, 4, 3)]


@dataclass(frozen=True)
class Whole:
    """What one process finds on whole sequences."""

    ids: Tensor
    targets: Tensor
    logits: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def make_model() -> StripedHyena2:
    torch.manual_seed(1)
    model = StripedHyena2.from_seed(SHAPE, seed=0).double()
    with torch.no_grad():  # skips that start at 0 would hide one that is left out
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model.train()


@cache
def whole(length: int) -> Whole:
    """Of this length, the same for every case."""
    model = make_model()
    ids, targets = torch.randint(0, SHAPE.vocabulary, (2, 2, length)).unbind()
    logits = model(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Whole(ids, targets, logits.detach(), loss.detach(), gradients)


def check(schemes: Schemes, group: dist.ProcessGroup, checkpointing: int) -> None:
    shared = SharedSequence(group, schemes)
    parallel = make_model()
    parallel.activation_checkpointing = checkpointing
    shared.put_on(parallel)
    for length in LENGTHS:
        wanted = whole(length)
        logits = parallel(shared.cut(wanted.ids))
        start, end = shared.expect(length)
        torch.testing.assert_close(logits, wanted.logits[:, start:end], rtol=0, atol=1e-10)
        part = F.cross_entropy(
            logits.flatten(0, 1), wanted.targets[:, start:end].flatten(), reduction="sum"
        )
        parallel.zero_grad()
        part.backward()
        total = part.detach().clone()
        dist.all_reduce(total, group=group)
        torch.testing.assert_close(total, wanted.loss, rtol=1e-12, atol=0)
        for label, found in parallel.named_parameters():
            gradient = found.grad.contiguous()
            dist.all_reduce(gradient, group=group)
            right = wanted.gradients[label]
            bound = 1e-10 * max(float(right.abs().max()), 1.0)
            torch.testing.assert_close(
                gradient, right, rtol=0, atol=bound, msg=lambda text, x=label: f"{x}: {text}"
            )


def checks(rank: int, attempt: Attempt) -> None:
    groups = {2: dist.new_group([1, 3]), 4: dist.group.WORLD}
    for schemes, count, checkpointing in CASES:
        if count == 4 or rank in (1, 3):
            label = name(schemes, count, checkpointing)
            attempt(label, check, schemes, groups[count], checkpointing)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in one run of all cases on four processes."""
    return failures_on_ranks(4, tmp_path_factory.mktemp("ranks"), checks)


@pytest.mark.parametrize("case", [name(*case) for case in CASES])
def test_a_shared_sequence_is_a_whole_one(failures: dict[str, str], case: str) -> None:
    assert case not in failures, failures[case]


@pytest.mark.parametrize(
    ("schemes", "count", "message"),
    [
        (Schemes(), 5, '4 heads for 5 ranks; use "zigzag"'),
        (Schemes(fir="pipelined"), 4, ""),
        (Schemes(fir="pipelined", attention="ring"), 5, "16 filter groups for 20 parts"),
        (Schemes(modal="all-to-all", attention="ring"), 33, "32 channels for 33 parts"),
        (Schemes(modal="fft", attention="ring"), 3, "3 ranks are not a power of two"),
    ],
)
def test_exchanges_that_a_shape_does_not_allow(schemes: Schemes, count: int, message: str) -> None:
    if not message:
        check_schemes(SHAPE, schemes, count)
        return
    with pytest.raises(ValueError, match=message):
        check_schemes(SHAPE, schemes, count)
