"""Layers by name: every module whose output is a vector at each position."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evo2cli.errors import UserError
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.released import shared_modules
from stripedhyena2.streaming import Streaming, stream

Hear = Callable[[int, Tensor], object]  # a position, and outputs [L, D] from there on


def part_names(config: ModelConfig) -> list[str]:
    """The layers that `all` stands for: the embedding, each block, the final norm."""
    return ["embedding", *(f"blocks.{index}" for index in range(config.depth)), "norm"]


def default_layer(config: ModelConfig) -> str:
    """Block 26 of 32, which published classifiers and dictionaries read, or as deep as that."""
    return f"blocks.{config.depth * 26 // 32}"


def resolve_layers(model: StripedHyena2, text: str | None) -> list[str]:
    """The names of layers, each once, as our modules are called.

    Args:
        model: Whose layers they are.
        text: A comma list of names, ours or those of the released models; of block numbers,
            negative ones from the end; or `all`. None for the default.

    Raises:
        UserError: The model has no such layer.
    """
    asked = default_layer(model.config) if text is None else text
    found = [name for word in asked.split(",") for name in _resolve(model, word.strip())]
    return list(dict.fromkeys(found))


def _resolve(model: StripedHyena2, word: str) -> list[str]:
    depth = model.config.depth
    if word == "all":
        return part_names(model.config)
    if word.removeprefix("-").isdecimal():
        if not -depth <= int(word) < depth:
            raise UserError(f"--layers {word}: the blocks are 0 to {depth - 1}; -1 is the last")
        return [f"blocks.{int(word) % depth}"]
    ours = [name for name, module in model.named_modules() if name and not _only_holds(module)]
    published = shared_modules(model.config)
    name = published.get(word, word)
    if name not in ours:
        near = difflib.get_close_matches(word, [*ours, *published], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "blocks.3, blocks.3.mlp, norm, all"
        raise UserError(f"--layers {word}: the model has no such layer; {hint}")
    return [name]


def _only_holds(module: nn.Module) -> bool:
    """Whether it is a list of modules, which gives nothing itself."""
    return isinstance(module, nn.ModuleList)


def read(
    model: StripedHyena2,
    ids_L: Tensor,
    way: Streaming,
    listeners: Mapping[str, Hear],
    advance: Callable[[float], None] = lambda _: None,
) -> None:
    """Stream a sequence through the model, as deep as there are layers to be heard.

    Args:
        model: What reads.
        ids_L: Token ids.
        way: How they are streamed.
        listeners: By layer; each hears its outputs in order of their positions.
        advance: Hears how many tokens are done; a part of them with each block.
    """
    heard = dict.fromkeys(listeners, 0)
    passes = max(_depth(model.config, name) for name in listeners)
    told = 0.0

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        x_BLD = output[0] if isinstance(output, tuple) else output
        listeners[name](heard[name], x_BLD[0])
        heard[name] += x_BLD.shape[1]

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in listeners
    ]
    try:
        for count, _ in stream(model, ids_L[None], way):
            if all(count == len(ids_L) for count in heard.values()):
                break
            told += count / passes
            advance(count / passes)
    finally:
        for handle in hooks:
            handle.remove()
    advance(len(ids_L) - told)


def _depth(config: ModelConfig, layer: str) -> int:
    """How many times the tokens pass through a block, or the head, before this layer is whole."""
    if layer.startswith("blocks."):
        return int(layer.split(".")[1]) + 1
    return 1 if layer == "embedding" else config.depth + 1


def layer_widths(model: StripedHyena2, layers: list[str]) -> dict[str, int]:
    """Channels of each layer, found out by reading one base."""
    widths: dict[str, int] = {}

    def note(name: str) -> Hear:
        return lambda _start, x_LD: widths.update({name: x_LD.shape[1]})

    one_base = torch.full((1,), ord("A"), device=model.embedding.weight.device)
    read(model, one_base, Streaming(), {name: note(name) for name in layers})
    return {name: widths[name] for name in layers}
