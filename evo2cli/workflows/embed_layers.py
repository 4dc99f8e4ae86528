"""Layers by name: every module whose output is a vector at each position."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evo2cli.errors import UserError
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.released import shared_modules
from stripedhyena2.streaming import stream

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
    words = [word.strip() for word in (text or default_layer(model.config)).split(",")]
    found = [name for word in words for name in _resolve(model, word)]
    return list(dict.fromkeys(found))


def _resolve(model: StripedHyena2, word: str) -> list[str]:
    depth = model.config.depth
    if word == "all":
        return part_names(model.config)
    if word.removeprefix("-").isdecimal():
        if not -depth <= int(word) < depth:
            raise UserError(f"--layers {word}: the model has blocks 0 to {depth - 1}; -1 is the last")
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
    piece: int,
    listeners: Mapping[str, Hear],
    advance: Callable[[float], None] = lambda _: None,
) -> None:
    """Run a sequence through the model, a piece at a time, for its layers to be heard.

    Args:
        model: What reads.
        ids_L: Token ids.
        piece: How many at a time.
        listeners: By layer; each hears its outputs in order of their positions.
        advance: Hears how many tokens are done; between layers, parts of them.
    """
    parts = part_names(model.config)

    def watch(name: str, start: int, x_BLD: Tensor) -> None:
        if name in listeners:
            listeners[name](start, x_BLD[0])
        advance(x_BLD.shape[1] / len(parts))

    inner = {name: hear for name, hear in listeners.items() if name not in parts}
    with _hooked(model, inner):
        for _ in stream(model, ids_L[None], piece=piece, watch=watch):
            pass


@contextmanager
def _hooked(model: StripedHyena2, listeners: Mapping[str, Hear]) -> Iterator[None]:
    """Have modules inside of blocks heard; they run piece by piece, so positions only go up."""

    def hook(hear: Hear) -> Callable[..., None]:
        position = 0

        def forward_hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal position
            x_BLD = output[0] if isinstance(output, tuple) else output
            hear(position, x_BLD[0])
            position += x_BLD.shape[1]

        return forward_hook

    hooks = [
        model.get_submodule(name).register_forward_hook(hook(hear))
        for name, hear in listeners.items()
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def layer_widths(model: StripedHyena2, layers: list[str]) -> dict[str, int]:
    """Channels of each layer, found out by reading one base."""
    widths: dict[str, int] = {}

    def note(name: str) -> Hear:
        return lambda _start, x_LD: widths.update({name: x_LD.shape[1]})

    one_base = torch.full((1,), ord("A"), device=model.embedding.weight.device)
    read(model, one_base, 1, {name: note(name) for name in layers})
    return {name: widths[name] for name in layers}
