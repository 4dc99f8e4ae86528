"""Which published models fit this machine, and whose numbers can be trusted on it."""

import json
from pathlib import Path
from typing import Any

import torch

from evo2cli.doctor.machine import memory_bytes
from evo2cli.likelihood import PIECE
from evo2cli.training.plan.calibration import CONTEXT, FRAGMENTATION
from hyenakernels.float8.op import runs_float8
from stripedhyena2 import ModelConfig
from stripedhyena2.checkpoint import hub, native
from stripedhyena2.checkpoint.precision import sums_like_hopper
from stripedhyena2.checkpoint.published import (
    PUBLISHED,
    Precision,
    published_config,
    split_name,
)
from stripedhyena2.costs import count_parameters, state_bytes

BF16, FP32 = 2, 4


def describe_models(device: torch.device, free_disk: int) -> list[dict[str, Any]]:
    """A row for each published model: name, needs, trusted, why, bytes, fits, cached."""
    return [_row(name, device, free_disk) for name in PUBLISHED]


def _row(name: str, device: torch.device, free_disk: int) -> dict[str, Any]:
    published, config = PUBLISHED[name], published_config(name)
    file = sum(published.sizes)
    cached = hub.find(name) is not None
    trusted, why = trust(published.precision, device)
    needed = inference_bytes(config, device, narrow=published.precision is not Precision.BF16)
    capacity = _capacity(device)
    obstacle = None
    if needed > capacity:
        obstacle = f"needs {needed / 1e9:,.0f} GB of {capacity / 1e9:,.0f}"
    elif len(published.sizes) > 1 and file > memory_bytes():
        obstacle = f"reading its parts takes {file / 1e9:,.0f} GB of memory"
    elif not cached and file > free_disk:
        obstacle = f"{file / 1e9:,.0f} GB to fetch, {free_disk / 1e9:,.0f} GB of disk free"
    return {
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


def trust(precision: Precision, device: torch.device) -> tuple[str, str]:
    """Whether numbers computed on `device` are the published ones ("yes", "unproven", "no"); why.

    "unproven": the computation is the one the model needs, but it was not compared on its weights.
    """
    if precision is Precision.BF16:
        return "yes", "needs no FP8"
    if precision is Precision.HOPPER:
        if sums_like_hopper(device):
            return "unproven", "FP8 with Hopper's sums, as trained"
        return "no", "needs the FP8 sums of Hopper GPUs (H100, H200)"
    if runs_float8(device):
        return "unproven", "FP8, as trained"
    return "unproven", "FP8 simulated: same rounding, exact sums"


def inference_bytes(config: ModelConfig, device: torch.device, *, narrow: bool) -> int:
    """About what scoring or generating one sequence of a piece's length takes.

    Weights, decoding state, the widest moment of a block and the head, and on a GPU what torch
    takes besides. N parameters, P of them in Hyena input projections, D channels, M of the MLP.

        e N - (e - 1) P, the second where the GPU keeps P in FP8;  L (3 M + 6 D) e + 8 L V

    Args:
        config: Shape of the model.
        device: A GPU computes in bf16, others in fp32: e bytes a number.
        narrow: Whether the projections are in FP8.
    """
    element = BF16 if device.type == "cuda" else FP32
    weights = element * count_parameters(config)
    if narrow and runs_float8(device):
        blocks = sum(mixer.float8_record is not None for mixer in config.mixers)
        weights -= (element - 1) * blocks * 3 * config.width**2
    length = min(PIECE, config.context)
    state = state_bytes(config, length) * element // BF16
    widest = length * (3 * config.mlp_width + 6 * config.width) * element
    head = 2 * length * config.vocabulary * FP32
    total = weights + state + widest + head
    return int(total * (1 + FRAGMENTATION) + CONTEXT) if device.type == "cuda" else total


def _capacity(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes()


def published_name(model: str) -> str | None:
    """The published model that `--model` names, or whose file it is; None for any other."""
    path = Path(model)
    names = [split_name(model)[0], path.name, *(file.name for file in hub.weight_files(path))]
    record = path / native.PROVENANCE
    if record.is_file():
        names.append(str(json.loads(record.read_text(encoding="utf-8")).get("source")))
    stems = (name.partition(".")[0] for name in names)
    return next((stem for stem in stems if stem in PUBLISHED), None)
