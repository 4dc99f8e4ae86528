"""Compare a converted checkpoint with its source, and check the source for known errors.

L tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.errors import UserError
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.checkpoint.published import PUBLISHED, published_config
from stripedhyena2.config import ModelConfig
from stripedhyena2.extension import ROUNDING
from stripedhyena2.layout import by_owner, by_part
from stripedhyena2.operators.attention import Attention, rotary_frequencies
from stripedhyena2.operators.hyena import HyenaLI, HyenaMR
from stripedhyena2.parametrization import DecayWindow

WINDOWS = Path(__file__).with_name("windows.fa")
# Logits of a model in two layouts differ only by the rounding of its poles.
TOLERANCE = 1e-3  # relative to the largest logit
BETTER = 0.02  # nats per base by which undoing an error lowers the loss of a trained model


def verify(source: str, destination: Path, *, config: Path | None = None) -> dict[str, Any]:
    """Compare the losses and logits of two checkpoints on two windows of 1,024 bases of real DNA.

    Args:
        source: Anything `stripedhyena2.load` reads.
        destination: The converted checkpoint.
        config: Shape of the source, if needed.

    Returns:
        windows (their names), source_loss and target_loss (nats per base), largest_difference (of
        logits), and suspicions: signs of known errors in the source, a sentence each.

    Raises:
        UserError: The logits differ by more than `TOLERANCE` times the largest.
    """
    names, ids = _windows()
    model = _open(source, config)
    before = _logits(model, ids)
    suspicions = list(_suspicions(model, ids, _loss(before, ids)))
    del model
    after = _logits(_open(str(destination), None), ids)
    largest = max(float((b - a).abs().max()) for b, a in zip(before, after, strict=True))
    scale = max(float(logits.abs().max()) for logits in before)
    result = {
        "windows": names,
        "source_loss": _loss(before, ids),
        "target_loss": _loss(after, ids),
        "largest_difference": largest,
        "suspicions": suspicions,
    }
    for suspicion in suspicions:
        console.warn(f"{source}: {suspicion}")
    if not largest <= TOLERANCE * scale:
        raise UserError(
            f"{destination}: its logits differ from those of {source} by up to {largest:.2g} "
            f"(loss {result['source_loss']:.4f} before, {result['target_loss']:.4f} after); "
            "please report this with the name of the source"
        )
    return result


def _windows() -> tuple[list[str], list[Tensor]]:
    records = WINDOWS.read_text(encoding="utf-8").split(">")[1:]
    names = [record.split()[0] for record in records]
    bases = ["".join(record.split("\n")[1:]) for record in records]
    return names, [torch.tensor([*window.encode()]) for window in bases]


def _open(name: str, config: Path | None) -> StripedHyena2:
    """Load a checkpoint in fp32 if memory allows, else in bf16, as its counterpart will be."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return load(name, config=config, device=device, float8=False).eval()
    except (MemoryError, torch.OutOfMemoryError):
        return load(name, config=config, device=device, dtype=torch.bfloat16, float8=False).eval()


@torch.no_grad()
def _logits(model: StripedHyena2, ids: list[Tensor]) -> list[Tensor]:
    """Logits [L, V] of each window, in fp32 on the host."""
    device = next(model.parameters()).device
    return [model(window[None].to(device))[0].float().cpu() for window in ids]


def _loss(logits: list[Tensor], ids: list[Tensor]) -> float:
    """Mean cross-entropy of all bases but the first, in nats per base."""
    losses = [
        torch.nn.functional.cross_entropy(window[:-1], target[1:].long())
        for window, target in zip(logits, ids, strict=True)
    ]
    return float(torch.stack(losses).mean())


def _suspicions(model: StripedHyena2, ids: list[Tensor], loss: float) -> Iterator[str]:
    """Signs in weights and shape that an earlier conversion went wrong."""
    config = model.config
    if lost_interpolation(config):
        yield (
            "rotary_scale = 1, but published models of this shape divide positions; give --config "
            "with its yml"
        )
    yield from _frequencies(model)
    if gamma_is_missing(model):
        yield (
            "the poles of Hyena-LI all lie near -exp(-1), where training starts: their factor "
            "exp(gamma) was lost"
        )
    for fault, undo in (
        ("the rows of attention's projections were cut into thirds without regrouping", by_part),
        ("the thirds of attention's projections were regrouped twice", by_owner),
    ):
        with _changed(model, Attention, _regrouped(undo, config.num_heads)):
            undone = _loss(_logits(model, ids), ids)
        if undone < loss - BETTER:
            yield f"{fault}: undoing this changes the loss from {loss:.3f} to {undone:.3f}"
    with _changed(model, HyenaMR, _under_window(config)):
        undone = _loss(_logits(model, ids), ids)
    if undone < loss - BETTER:
        yield (
            "the filters of Hyena-MR lack their decay: applying it changes the loss from "
            f"{loss:.3f} to {undone:.3f}"
        )


def lost_interpolation(config: ModelConfig) -> bool:
    """Whether this model has no rotary interpolation, but all published models of its shape do."""
    shapes = [published_config(name) for name in PUBLISHED]
    alike = [
        shape
        for shape in shapes
        if (shape.stripes, shape.width, shape.mlp_width)
        == (config.stripes, config.width, config.mlp_width)
    ]
    return config.rotary_scale == 1 and bool(alike) and all(s.rotary_scale != 1 for s in alike)


def gamma_is_missing(model: StripedHyena2) -> bool:
    """Whether all poles are near -exp(p) with p = -1, its initial value, which hardly changes."""
    poles = [
        block.mixer.operator.log_poles_DS
        for block in model.blocks
        if isinstance(block.mixer, HyenaLI)
    ]
    return bool(poles) and all(
        bool(((-log_poles).log() + 1).abs().max() < 0.2) for log_poles in poles
    )


def _frequencies(model: StripedHyena2) -> Iterator[str]:
    expected = rotary_frequencies(model.config)
    stored = [
        block.mixer.inverse_frequency.float().cpu()
        for block in model.blocks
        if isinstance(block.mixer, Attention)
    ]
    if any(not torch.allclose(values, expected, rtol=ROUNDING, atol=0) for values in stored):
        yield (
            f"its rotary frequencies are not those of rotary_base = {model.config.rotary_base:g}"
        )
    elif any(not torch.equal(values, expected) for values in stored):
        yield "its rotary frequencies are rounded to bf16, as in the released 1B and 7B models"


Change = Callable[[Any], tuple[torch.nn.Parameter, Tensor]]


def _regrouped(order: Callable[[Tensor, int], Tensor], num_heads: int) -> Change:
    return lambda mixer: (
        mixer.project_in.weight,
        order(mixer.project_in.weight.data, num_heads),
    )


def _under_window(config: ModelConfig) -> Change:
    window = DecayWindow(
        config.num_medium_filter_groups, config.num_medium_taps, config.original_context
    )

    def change(mixer: Any) -> tuple[torch.nn.Parameter, Tensor]:
        taps_GK = mixer.operator.taps_GK
        return taps_GK, taps_GK.data * window.window_GK.to(taps_GK)

    return change


@contextmanager
def _changed(model: StripedHyena2, kind: type[torch.nn.Module], change: Change) -> Iterator[None]:
    """Within the context, change a parameter of every mixer of a class."""
    changes = [change(block.mixer) for block in model.blocks if isinstance(block.mixer, kind)]
    before = [parameter.data for parameter, _ in changes]
    for parameter, value in changes:
        parameter.data = value
    try:
        yield
    finally:
        for (parameter, _), value in zip(changes, before, strict=True):
            parameter.data = value
