"""Whether a checkpoint gives its published numbers, by device and precision."""

import torch

from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.published import Precision, needed_precision


def precision_of(checkpoint: Checkpoint) -> Precision:
    """The precision that a checkpoint needs: known for released weights, bf16 for our own."""
    return needed_precision(checkpoint.config) if is_released(checkpoint) else Precision.BF16


def is_released(checkpoint: Checkpoint) -> bool:
    """Whether the weights were trained elsewhere, even if their context was extended here."""
    return _stored_as(checkpoint) in ("released", "savanna", "bridge", "hf")


def _stored_as(checkpoint: Checkpoint) -> str | None:
    """The layout of the file that the weights were read from; None if they were trained here."""
    origin = checkpoint.provenance
    while "before" in origin and "trained_by" not in origin:
        origin = origin["before"]
    return origin.get("layout")


def precision_warning(
    checkpoint: Checkpoint, origin: str, device: torch.device, *, float8: bool
) -> str | None:
    """A warning that a published model will not give its published numbers; None if it will."""
    precision = precision_of(checkpoint)
    if precision is Precision.BF16:
        return None
    if not float8 and _stored_as(checkpoint) == "bridge":
        return (
            f"{origin}: has no FP8 scales, like all checkpoints of Megatron-Bridge; if it was "
            "trained with FP8, as the published model of this shape, its numbers are wrong"
        )
    if not float8:
        no_scales = "" if checkpoint.extra_state else ", whose scales this file lacks"
        return (
            f"{origin}: was trained with FP8 input projections{no_scales}; without them its "
            "numbers are wrong"
        )
    if precision is Precision.HOPPER and not sums_like_hopper(device):
        return (
            f"{origin}: was trained with the FP8 sums of Hopper GPUs; with those of {device} its "
            "numbers are known to be wrong"
        )
    return None


def sums_like_hopper(device: torch.device) -> bool:
    """Whether FP8 products on `device` accumulate as on the GPUs that Evo 2 was trained on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
