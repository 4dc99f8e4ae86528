"""Opening a model for a command: which device, which dtype, and errors in the user's words."""

from pathlib import Path

import torch

from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, ConfigError, StripedHyena2, load

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, or else the CPU.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not available here; use auto or cpu") from None
    return device


def open_model(
    model: str, *, config: Path | None = None, device: str = "auto", dtype: str = "auto"
) -> StripedHyena2:
    """Load the model a command names, ready for inference.

    Args:
        model: What `--model` says: a folder, a file or a name.
        config: What `--config` says: the yml or TOML of a released file.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "fp32", "bf16", "fp64", or "auto": bf16 on a GPU, fp32 on a CPU.

    Raises:
        UserError: The model, the device or the dtype is not to be had.
    """
    place = pick_device(device)
    if dtype == "auto":
        dtype = "bf16" if place.type == "cuda" else "fp32"
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: not one of auto, {', '.join(DTYPES)}")
    try:
        return load(model, config=config, device=place, dtype=DTYPES[dtype]).eval()
    except (CheckpointError, ConfigError) as error:
        raise UserError(str(error)) from None
