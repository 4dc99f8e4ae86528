"""Hyena operators, mixers around them, and models, with random weights, for the benchmarks.

B batch, L length, D channels, C = 3D channels [x2 | x1 | v], F featurizer taps, S modes.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor, nn

from hyenakernels import FIRFilters, ModalFilters, hyena_fir, hyena_modal
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.initial import Uninitialized
from stripedhyena2.parametrization import trainable
from tests.benchmarks.gpu import DEVICE

KINDS = ("SE", "MR", "LI")
NUM_TAPS = {"SE": 7, "MR": 128}
NUM_MODES = 16
GROUP_SIZE = 16  # channels that share a filter, as in the published 7B


def operator(kind: str) -> Callable[..., Tensor]:
    """What stands between a mixer's projections: z and the parameters in, y out, no pasts."""
    if kind == "LI":
        return lambda z_BLC, *parameters: hyena_modal(z_BLC, ModalFilters(*parameters))[0]
    return lambda z_BLC, *parameters: hyena_fir(z_BLC, FIRFilters(*parameters))[0]


def draw_parameters(kind: str, width: int, num_featurizer_taps: int) -> list[nn.Parameter]:
    """Random fp32 parameters of an operator, in the order it takes them.

    One featurizer tap is the identity and asks for no gradient. The modes of LI remember 2 to
    2,048 samples.
    """
    featurizer_CF = torch.randn(3 * width, num_featurizer_taps, device=DEVICE)
    if num_featurizer_taps == 1:
        featurizer_CF.fill_(1)
    tensors = []
    if kind == "LI":
        memory_DS = 2 * torch.exp(log(1024) * torch.rand(width, NUM_MODES, device=DEVICE))
        tensors += [-1 / memory_DS, torch.randn_like(memory_DS) / (NUM_MODES * memory_DS).sqrt()]
    else:
        num_taps = NUM_TAPS[kind]
        tensors += [torch.randn(width // GROUP_SIZE, num_taps, device=DEVICE) / num_taps**0.5]
    if kind != "SE":
        tensors += [torch.randn(width, device=DEVICE)]  # the skip
    featurizer = nn.Parameter(featurizer_CF, requires_grad=num_featurizer_taps > 1)
    return [featurizer, *map(nn.Parameter, tensors)]


def projections(width: int) -> tuple[nn.Linear, nn.Linear]:
    """The two bf16 projections of a mixer, with random weights."""
    return (
        nn.Linear(width, 3 * width, bias=False, dtype=torch.bfloat16, device=DEVICE),
        nn.Linear(width, width, dtype=torch.bfloat16, device=DEVICE),
    )


class Mixer(nn.Module):
    """A Hyena mixer: projection to 3D channels, operator, projection back."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.project_in, self.project_out = projections(width)
        self.operator = operator(kind)
        self.filters = nn.ParameterList(draw_parameters(kind, width, num_featurizer_taps=3))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix along L; returns the shape it was given."""
        return self.project_out(self.operator(self.project_in(x_BLD), *self.filters))


@torch.no_grad()
def random_model(config: ModelConfig, *, trains: bool = False) -> StripedHyena2:
    """A model in bf16 with random weights, drawn on the device, perhaps in its training form."""
    with Uninitialized(), DEVICE:
        model = StripedHyena2(config)
    for name, parameter in model.named_parameters():
        if name.endswith("log_poles_DS"):
            parameter.uniform_(-0.1, -0.001)
        else:
            parameter.normal_(std=0.01)
    if trains:
        trainable(model, config.original_context)
    return model.bfloat16()
