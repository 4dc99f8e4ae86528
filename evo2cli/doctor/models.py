"""Which published models fit this machine, and which reproduce their published numbers on it."""

from pathlib import Path
from typing import Any

import torch

from evo2cli.training.plan.calibration import CONTEXT, FRAGMENTATION
from hyenakernels.float8.op import runs_float8
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint import hub
from stripedhyena2.checkpoint.layouts import native
from stripedhyena2.checkpoint.precision import sums_like_hopper
from stripedhyena2.checkpoint.published import (
    PUBLISHED,
    Precision,
    published_config,
    split_name,
)
from stripedhyena2.costs import count_parameters, state_bytes
from stripedhyena2.scoring import CHUNK
from stripedhyena2.streaming import Streaming

BF16, FP32 = 2, 4


def describe_models(device: torch.device, memory: int, free_disk: int) -> list[dict[str, Any]]:
    """Describe each published model: memory, trust, and whether it fits.

    Args:
        device: Device to run models on.
        memory: Host memory in bytes.
        free_disk: Free disk space for downloads, in bytes.

    Returns:
        name, needs (precision), trusted and why (see `trust`), file_bytes, needed_bytes, fits,
        obstacle (None if it fits), cached.
    """
    capacity = memory
    if device.type == "cuda":
        capacity = int(torch.cuda.get_device_properties(device).total_memory)
    has_float8 = runs_float8(device)
    rows = []
    for name, published in PUBLISHED.items():
        file = sum(published.sizes)
        cached = hub.find(name) is not None
        trusted, why = trust(
            published.precision, float8=has_float8, hopper=sums_like_hopper(device)
        )
        needed = inference_bytes(
            published_config(name),
            device,
            float8=has_float8 and published.precision is not Precision.BF16,
        )
        obstacle = None
        if needed > capacity:
            obstacle = f"needs {needed / 1e9:,.0f} GB of {capacity / 1e9:,.0f}"
        elif len(published.sizes) > 1 and file > memory:
            obstacle = f"loading its parts takes {file / 1e9:,.0f} GB of memory"
        elif not cached and file > free_disk:
            obstacle = f"{file / 1e9:,.0f} GB to download, {free_disk / 1e9:,.0f} GB of disk free"
        rows.append(
            {
                "name": name,
                "needs": published.precision,
                "trusted": trusted,
                "why": why,
                "file_bytes": file or None,
                "needed_bytes": needed,
                "fits": obstacle is None,
                "obstacle": obstacle,
                "cached": cached,
            }
        )
    return rows


def trust(precision: Precision, *, float8: bool, hopper: bool) -> tuple[str, str]:
    """Whether a device reproduces the published numbers ("yes", "unproven" or "no"), and why.

    "unproven": the device has the arithmetic that the model needs, but its results have not been
    compared with published numbers of the model.

    Args:
        precision: Precision that the model needs.
        float8: Whether the device has FP8 matrix products.
        hopper: Whether it accumulates FP8 products as Hopper GPUs do.
    """
    if precision is Precision.BF16:
        return "yes", "needs no FP8"
    if precision is Precision.HOPPER:
        if hopper:
            return "unproven", "FP8 with Hopper's sums, as trained"
        return "no", "needs the FP8 sums of Hopper GPUs (H100, H200)"
    if float8:
        return "unproven", "FP8, as trained"
    return "unproven", "FP8 simulated: same rounding, exact sums"


def inference_bytes(config: ModelConfig, device: torch.device, *, float8: bool) -> int:
    """Estimate the memory to score or generate one sequence of `CHUNK` tokens, in bytes.

    It is the sum of weights, decoding state and the activations of a chunk (`Streaming`); on a GPU
    also the CUDA context and fragmentation.

    Args:
        config: Shape of the model.
        device: The weights are bf16 on a GPU and fp32 on other devices.
        float8: Whether the device stores the input projections of Hyena in FP8.
    """
    element = BF16 if device.type == "cuda" else FP32
    weights = element * count_parameters(config)
    if float8:
        hyenas = sum(mixer.float8_record is not None for mixer in config.mixers)
        weights -= (element - 1) * hyenas * 3 * config.width**2
    length = min(CHUNK, config.context)
    state = state_bytes(config, length, element)
    total = weights + state + Streaming().peak_memory(config, length, element)
    return int(total * (1 + FRAGMENTATION) + CONTEXT) if device.type == "cuda" else total


def published_name(model: str) -> str | None:
    """The published model that `model` is the name or a file of; None for other models."""
    path = Path(model)
    names = [split_name(model)[0], path.name, *(file.name for file in hub.weight_files(path))]
    names.append(str(native.provenance_of(path).get("source")))
    stems = (name.partition(".")[0] for name in names)
    return next((stem for stem in stems if stem in PUBLISHED), None)
