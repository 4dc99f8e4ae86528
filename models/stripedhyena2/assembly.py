"""Building a model for training part by part, so that no process holds a large model whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from stripedhyena2.config import ModelConfig
from stripedhyena2.initial import Uninitialized
from stripedhyena2.model import Block, RMSNorm, StripedHyena2, initial_values
from stripedhyena2.parametrization import restore_form, trainable

Adopt = Callable[[nn.Module], object]


def assemble(
    config: ModelConfig,
    *,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
    published: bool = False,
    adopt: Adopt,
) -> StripedHyena2:
    """Build a model whose filters are in training form.

    Args:
        config: Shape of the model.
        seed: Seed of random initial weights.
        weights: Weights to start from instead, in folded form, by their names in the model; and
            factors of some of them from an earlier training, as in `Checkpoint.training_form`.
        published: As for `trainable`.
        adopt: Called with each initialized part (embedding, block, final norm), on the CPU in fp32;
            moves it to a device, or shards it over several.
    """
    with torch.device("meta"):
        model = StripedHyena2(config)
    values = initial_values(model, seed) if weights is None else None

    def complete(path: str, make: Callable[[], nn.Module]) -> nn.Module:
        with Uninitialized():
            part = make()
        _fill(part, path, values, weights or {})
        trainable(part, config.original_context, published=published)
        restore_form(part, path, weights or {})
        return part

    parts = list(_parts(config))
    tasks = [partial(complete, path, make) for path, make in parts]
    for (path, _), part in zip(parts, _one_ahead(tasks), strict=True):
        adopt(part)
        model.set_submodule(path, part)
    return model


def _parts(config: ModelConfig) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Paths of the parts and their constructors, in the order of the model's parameters."""
    yield "embedding", partial(nn.Embedding, config.vocabulary, config.width)
    for index in range(config.depth):
        yield f"blocks.{index}", partial(Block, config, index)
    yield "norm", partial(RMSNorm, config.width, config.norm_eps)


def _one_ahead(tasks: Iterable[Callable[[], nn.Module]]) -> Iterator[nn.Module]:
    """The results of tasks in order; a thread computes the next one while one is in use."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending: Future[nn.Module] | None = None
        for task in tasks:
            ready, pending = pending, thread.submit(task)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


@torch.no_grad()
def _fill(
    part: nn.Module, path: str, values: Iterator[Tensor] | None, weights: Mapping[str, Tensor]
) -> None:
    for name, parameter in part.named_parameters():
        if values is None:
            parameter.copy_(weights[f"{path}.{name}"])
        else:  # without a copy, which would take as long as drawing the numbers
            parameter.data = next(values)
    for name, buffer in part.named_buffers():
        if f"{path}.{name}" in weights:  # released checkpoints have rounded frequencies
            buffer.copy_(weights[f"{path}.{name}"])
