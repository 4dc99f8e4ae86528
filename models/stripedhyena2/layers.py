"""Layers by name, and capturing their outputs while a sequence streams through the model.

A layer is any module whose output is a vector per position.

L positions, D channels of a layer.
"""

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import InputError
from stripedhyena2.layout import shared_modules
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.streaming import Streaming, stream

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

MIXER_PROJECTIONS = ("mixer.project_in", "mixer.project_out")
MLP_PROJECTIONS = ("mlp.gate", "mlp.up", "mlp.down")

Listener = Callable[[int, Tensor], object]  # takes a start position and the outputs [L, D] from it


def part_names(config: ModelConfig) -> list[str]:
    """The layers that "all" selects: the embedding, each block, the final norm."""
    return ["embedding", *(f"blocks.{index}" for index in range(config.depth)), "norm"]


def block_index(name: str) -> int | None:
    """The index of the block of a layer or tensor, by its name; None if it is not in a block."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "blocks" else None


def num_blocks(config: ModelConfig, layers: Sequence[str]) -> int:
    """The number of blocks that must be computed for the outputs of layers."""

    def needed(layer: str) -> int:
        index = block_index(layer)
        if index is not None:
            return index + 1
        return 0 if layer == "embedding" else config.depth

    return max(map(needed, layers))


def projection_names(config: ModelConfig) -> list[str]:
    """The linear layers of all blocks: the projections of mixers and MLPs."""
    names = (*MIXER_PROJECTIONS, *MLP_PROJECTIONS)
    return [f"blocks.{index}.{name}" for index in range(config.depth) for name in names]


def default_layer(config: ModelConfig) -> str:
    """Block 26 of 32, which published classifiers and autoencoders use, or its equivalent."""
    return f"blocks.{config.depth * 26 // 32}"


def resolve_layers(model: "StripedHyena2", layers: str | Sequence[str] | None) -> list[str]:
    """Resolve layers to the names of our modules, without duplicates.

    Args:
        model: The model.
        layers: Names, ours or those of the released models; indices of blocks, where negative ones
            count from the end; or "all". A string may hold several, separated by commas. None is
            `default_layer`.

    Raises:
        InputError: The model has no such layer, or none is named.
    """
    if layers is None:
        return [default_layer(model.config)]
    if not isinstance(layers, Iterable):
        raise InputError(f"layers={layers!r}: give names or numbers in a list, e.g. ['blocks.5']")
    words = layers.split(",") if isinstance(layers, str) else [str(layer) for layer in layers]
    if not words:
        raise InputError("layers=[]: name at least one layer, or pass None for the default")
    return list(dict.fromkeys(name for word in words for name in _resolve(model, word.strip())))


def _resolve(model: "StripedHyena2", word: str) -> list[str]:
    depth = model.config.depth
    if word == "all":
        return part_names(model.config)
    if word.removeprefix("-").isdecimal():
        if not -depth <= int(word) < depth:
            raise InputError(f"layer {word}: the blocks are 0 to {depth - 1}; -1 is the last")
        return [f"blocks.{int(word) % depth}"]
    return [find_module(model, word)]


def find_module(model: "StripedHyena2", name: str) -> str:
    """The name of our module for `name`, which may be a name in the released models.

    Raises:
        InputError: The model has no such layer; the message suggests similar names.
    """
    ours = [
        name
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.ModuleList)  # a list has no output
    ]
    released = shared_modules(model.config)
    found = released.get(name, name)
    if found not in ours:
        near = difflib.get_close_matches(name, [*ours, *released], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "try blocks.3, blocks.3.mlp or norm"
        raise InputError(f"layer {name!r}: the model has no such layer; {hint}")
    return found


@contextmanager
def listening(listeners: Iterable[tuple[nn.Module, Callable[[Any], object]]]) -> Iterator[None]:
    """Within this context, each module's output (the first, if it has several) is listened to.

    A hook belongs to the module, which other threads may be calling for sequences of their own;
    only outputs of the thread that opens the context are passed on.

    Args:
        listeners: Modules, each with what is called with its outputs.
    """
    thread = threading.get_ident()

    def hook(listen: Callable[[Any], object], _module: nn.Module, _in: object, output: Any) -> None:
        if threading.get_ident() == thread:
            listen(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(partial(hook, listen)) for module, listen in listeners]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def stream_layers(
    model: "StripedHyena2",
    ids_L: Tensor,
    streaming: Streaming,
    listeners: Mapping[str, Listener],
    progress: Progress = ignore_progress,
) -> None:
    """Stream a sequence through the model, up to the deepest layer that has a listener.

    Args:
        model: The model.
        ids_L: Token ids.
        streaming: The streaming plan.
        listeners: A listener per layer, called with its outputs in order of position.
        progress: See `stripedhyena2.progress`.
    """
    seen = dict.fromkeys(listeners, 0)
    passes = max(_num_passes(model.config, name) for name in listeners)
    reported = 0.0

    def listen(name: str, x_BLD: Tensor) -> None:
        listeners[name](seen[name], x_BLD[0])
        seen[name] += x_BLD.shape[1]

    with listening((model.get_submodule(name), partial(listen, name)) for name in listeners):
        for count, _ in stream(model, ids_L[None], streaming):
            if all(count == len(ids_L) for count in seen.values()):
                break
            reported += count / passes
            progress(count / passes)
    progress(len(ids_L) - reported)


def _num_passes(config: ModelConfig, layer: str) -> int:
    """The number of passes (of all tokens through a block or the head) that complete a layer."""
    index = block_index(layer)
    if index is not None:
        return index + 1
    return 1 if layer == "embedding" else config.depth + 1


def layer_width(model: "StripedHyena2", layer: str) -> int:
    """The number of channels of a layer; the model may be on the meta device."""
    module = model.get_submodule(layer)
    if isinstance(module, nn.Linear):
        return module.out_features
    return model.config.mlp_width if layer.endswith("mlp.activation") else model.config.width


def layer_widths(model: "StripedHyena2", layers: Sequence[str]) -> dict[str, int]:
    """The number of channels of each layer, from the outputs for a single base."""
    widths: dict[str, int] = {}

    def note(name: str) -> Listener:
        return lambda _start, x_LD: widths.update({name: x_LD.shape[1]})

    one_base = torch.full((1,), ord("A"), device=model.embedding.weight.device)
    stream_layers(model, one_base, Streaming(), {name: note(name) for name in layers})
    return {name: widths[name] for name in layers}
