"""Open a model for a command: choose device and dtype, and report errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, ConfigError, StripedHyena2, load
from stripedhyena2.memory import is_out_of_memory, out_of_memory

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
AS_TRAINED, FP8 = "auto", "fp8"


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, or the CPU if there is none.

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


@contextmanager
def memory_explained(what: str, way_out: str) -> Iterator[None]:
    """Turn running out of memory, of a GPU or of the machine, into one line.

    Args:
        what: What did not fit, which begins the line.
        way_out: What the user can do, which ends it.

    Raises:
        UserError: In place of PyTorch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: {out_of_memory(error)}; {way_out}") from None


def open_model(
    model: str, *, config: Path | None = None, device: str = "auto", dtype: str = "auto"
) -> StripedHyena2:
    """Load the model a command names, ready for inference.

    Args:
        model: Folder, file or name, as `--model` takes it.
        config: yml or TOML of a released file, as `--config` takes it.
        device: "auto", "cpu", "cuda", "cuda:1", ... With "auto" and "cuda", a model that does not
            fit one GPU is spread over several.
        dtype: "fp32", "bf16" or "fp64"; "fp8" is bf16 on a GPU and fp32 on a CPU, with the Hyena
            input projections in FP8 by the checkpoint's scales; "auto" is "fp8" for the published
            models that need it, and otherwise the same without FP8.

    Raises:
        UserError: The model cannot be loaded, or the device or dtype is not available.
    """
    chosen = pick_device(device)
    if dtype not in (AS_TRAINED, FP8, *DTYPES):
        raise UserError(f"--dtype {dtype}: not one of {', '.join((AS_TRAINED, FP8, *DTYPES))}")
    default = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    several = chosen.type == "cuda" and chosen.index is None and torch.cuda.device_count() > 1
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    try:
        with memory_explained(
            f"--model {model}, {dtype}, on {chosen}", "use a smaller model or another --device"
        ):
            return load(
                model,
                config=config,
                device=gpus if several else chosen,
                dtype=DTYPES.get(dtype, default),
                float8=None if dtype == AS_TRAINED else dtype == FP8,
            ).eval()
    except (CheckpointError, ConfigError) as error:
        raise UserError(str(error)) from None


def ready_model(
    model: StripedHyena2 | str | Path, *, device: str = "auto", dtype: str = "auto"
) -> StripedHyena2:
    """A loaded model as it is; any other as `open_model` loads it.

    Raises:
        UserError: As `open_model`.
    """
    if isinstance(model, StripedHyena2):
        return model
    return open_model(str(model), device=device, dtype=dtype)
