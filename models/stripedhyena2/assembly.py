"""A model for training, built part by part, so that no process ever holds a large one whole."""

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
        seed: Seed of fresh weights.
        weights: Weights to start from instead, folded, by their names in the model; and parts of
            some of them from an earlier training, as in `Checkpoint.training_form`.
        published: As for `trainable`.
        adopt: Moves each part (embedding, block, final norm), complete and on the CPU in fp32, to
            where it belongs: onto a device, or in shards over several.
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
    """The parts in the order of the model's parameters, and what makes them."""
    yield "embedding", partial(nn.Embedding, config.vocabulary, config.width)
    for index in range(config.depth):
        yield f"blocks.{index}", partial(Block, config, index)
    yield "norm", partial(RMSNorm, config.width, config.norm_eps)


def _one_ahead(tasks: Iterable[Callable[[], nn.Module]]) -> Iterator[nn.Module]:
    """The results of tasks in their order; a thread works on the next while one is used."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[nn.Module] | None = None
        for task in tasks:
            ready, coming = coming, thread.submit(task)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


@torch.no_grad()
def _fill(
    part: nn.Module, path: str, values: Iterator[Tensor] | None, weights: Mapping[str, Tensor]
) -> None:
    for name, parameter in part.named_parameters():
        if values is None:
            parameter.copy_(weights[f"{path}.{name}"])
        else:  # the drawn tensor itself: a copy costs a large model as much as the drawing
            parameter.data = next(values)
    for name, buffer in part.named_buffers():
        if f"{path}.{name}" in weights:  # released checkpoints carry rounded frequencies
            buffer.copy_(weights[f"{path}.{name}"])
