"""What the benchmarks of whole models share: weights, tokens, and a clock."""

import statistics
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from stripedhyena2 import StripedHyena2
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.float8.inference import round_products
from stripedhyena2.layers import projection_names
from tests.benchmarks.gpu import DEVICE


@lru_cache(maxsize=1)  # memory is read too
def model_of(name: str, *, float8: bool = False) -> StripedHyena2:
    """Weights like those of a trained model in size, so that nothing overflows.

    Args:
        name: A published shape.
        float8: Whether projections and MLPs are in FP8, as `load(..., float8=True)` leaves them.
    """
    with DEVICE:
        model = StripedHyena2(published_config(name)).requires_grad_(False).eval()
    wide = {name for mixer in model.mixers for name in mixer.fp32_tensors}
    for path, parameter in model.named_parameters():
        if path.endswith("log_poles_DS"):
            parameter.uniform_(-0.1, -0.001)
        elif path.endswith("scale"):
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
        if not path.endswith(tuple(wide)):
            parameter.data = parameter.to(torch.bfloat16)
    if float8:
        round_products(model, projection_names(model.config))
    return model


def seconds(run: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ids_of(batch: int, length: int) -> Tensor:
    return torch.randint(65, 85, (batch, length), device=DEVICE)
