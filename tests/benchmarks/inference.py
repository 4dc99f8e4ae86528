"""What the benchmarks of whole models share: weights, tokens, and a clock."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.device_map import block_sizes, device_map, move_activations
from stripedhyena2.float8.inference import round_products
from stripedhyena2.initial import Uninitialized
from stripedhyena2.layers import projection_names
from stripedhyena2.mixer import Mixer
from stripedhyena2.model import Block, RMSNorm
from tests.benchmarks.gpu import DEVICE


@lru_cache(maxsize=1)  # memory is read too
def model_of(name: str, *, float8: bool = False) -> StripedHyena2:
    """Weights like those of a trained model in size, so that nothing overflows.

    Args:
        name: A published shape.
        float8: Whether projections and MLPs are in FP8, as `load(..., float8=True)` leaves them.
    """
    model = spread_model(published_config(name), [DEVICE])
    if float8:
        round_products(model, projection_names(model.config))
    return model


@torch.no_grad()
def spread_model(config: ModelConfig, devices: Sequence[torch.device]) -> StripedHyena2:
    """Such a model with consecutive blocks on each device, built where they belong."""
    with torch.device("meta"):
        model = StripedHyena2(config)
    sizes = block_sizes(model.state_dict(), config.depth, 2)
    parts: list[tuple[str, torch.device, Callable[[], nn.Module]]] = [
        ("embedding", devices[0], lambda: nn.Embedding(config.vocabulary, config.width)),
        ("norm", devices[0], lambda: RMSNorm(config.width, config.norm_eps)),
    ]
    for index, device in enumerate(device_map(sizes, devices)):
        parts.append((f"blocks.{index}", device, partial(Block, config, index)))
    for path, device, build in parts:
        with Uninitialized(), device:
            part = build()
        _draw(part)
        model.set_submodule(path, part)
    if len(devices) > 1:
        move_activations(model)
    return model.requires_grad_(False).eval()


def _draw(part: nn.Module) -> None:
    wide = {name for m in part.modules() if isinstance(m, Mixer) for name in m.fp32_tensors}
    for path, parameter in part.named_parameters():
        if path.endswith("log_poles_DS"):
            parameter.uniform_(-0.1, -0.001)
        elif path.endswith("scale"):
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.02)
        if not path.endswith(tuple(wide)):
            parameter.data = parameter.to(torch.bfloat16)


def seconds(run: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize() -> None:
    """Wait for all GPUs; a model may be on several."""
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def ids_of(batch: int, length: int) -> Tensor:
    return torch.randint(65, 85, (batch, length), device=DEVICE)
