"""Load a model for a command: choose device and dtype, and report errors in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.options import DType, ModelOptions
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.adapters import Adapter, is_adapter, read_adapter
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.built_in import find_built_in
from stripedhyena2.float8.inference import float8_parts
from stripedhyena2.memory import is_out_of_memory, out_of_memory

_HEAD = "head.safetensors"  # in the folder of a run of `evo2 finetune`
DTYPES = {DType.FP32: torch.float32, DType.FP64: torch.float64, DType.BF16: torch.bfloat16}

# Pins 8 GiB in 1.0 s, instead of 3.7 (tests/benchmarks/results/inference.md).
ALLOCATOR = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"


def pick_device(name: str, *, allocator: str = ALLOCATOR) -> torch.device:
    """Parse a device; "auto" is the first CUDA device, or the CPU if there is none.

    Args:
        name: As PyTorch writes it, or "auto".
        allocator: Configuration of PyTorch's allocators, unless the user has set one in the
            environment. PyTorch reads it when it first uses a GPU.

    Raises:
        UserError: The device is not available.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = allocator
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with suppress(RuntimeError, AssertionError, ImportError):
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type != "meta":  # it holds no data
            return device
    raise UserError(f"--device {name}: not available here; use auto or cpu")


@contextmanager
def memory_explained(what: str, way_out: str) -> Iterator[None]:
    """Turn an out-of-memory error, on GPU or host, into a one-line error.

    Args:
        what: Begins the message: what did not fit.
        way_out: Ends the message: what the user can do.

    Raises:
        UserError: In place of PyTorch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: {out_of_memory(error)}; {way_out}") from None


def open_model(options: ModelOptions) -> StripedHyena2:
    """Load a model, and its adapter if there is one, for inference.

    With device "auto" or "cuda", a model that does not fit one GPU is spread over several. With
    dtype "auto", published models that were trained with FP8 projections compute these in FP8.

    Raises:
        UserError: The device is not available, or the model does not fit in its memory.
        InputError: The model cannot be loaded with these options, or the adapter belongs to another
            model.
    """
    device, dtype = pick_device(options.device), options.dtype
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    several = device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    what = f"--model {options.model}, {dtype}, on {device}"
    with memory_explained(what, "use a smaller model or another --device"):
        model = load(
            options.model,
            config=options.config,
            device=gpus if several else device,
            dtype=DTYPES.get(dtype, default),
            float8=None if dtype is DType.AUTO else dtype is DType.FP8,
        ).eval()
    if options.adapter is not None:
        stored = read_checkpoint(options.model, config=options.config)
        adapter = open_adapter(options.adapter)
        adapter.check_base(stored.config, stored.tensors, f"--adapter {options.adapter}")
        adapter.put_on(model)
    model.checks_ids = model.config.vocabulary < 256  # token ids of commands are bytes
    return model


def warn_beyond_context(model: StripedHyena2, length: int, what: str) -> None:
    """Warn if a sequence is longer than the context that the model was trained on.

    Args:
        model: The model.
        length: Length of the sequence in positions.
        what: Begins the message, e.g. "--window 16,384".
    """
    context = model.config.context
    if length > context:
        console.warn(
            f"{what}: longer than the {context:,} positions that the model was trained on; beyond "
            "them it extrapolates"
        )


def precision_name(model: StripedHyena2) -> str:
    """Describe the dtype of weights and activations, and the parts in FP8, if any."""
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    narrow = float8_parts(model)
    return f"{dtype} with {narrow}" if narrow else dtype


def say_demonstration(model: str) -> None:
    """Print a notice on stderr if the model is a built-in one, which is only for demonstration."""
    if find_built_in(model) is not None:
        console.say(
            f"{model} is a small demonstration model: do not conclude from it; for science give "
            "--model evo2_7b or another published one"
        )


def open_adapter(run: Path) -> Adapter:
    """Read an adapter from the folder of a run of `evo2 finetune`, or from its own folder.

    Raises:
        UserError: There is none.
        CheckpointError: It is damaged.
    """
    for folder in (run, run / "adapter", run / "final" / "adapter", run / "best" / "adapter"):
        if is_adapter(folder):
            return read_adapter(folder)
    for model in (run / "model", run / "final" / "model"):
        if model.is_dir():
            raise UserError(f"{run}: was trained whole and has no adapter; give --model {model}")
    if any((folder / _HEAD).is_file() for folder in (run, run / "final", run / "best")):
        raise UserError(
            f"{run}: only a head was trained, and the model is its base, without an adapter; "
            "`evo2 predict` uses the head"
        )
    raise UserError(
        f"{run}: has no adapter (adapter_config.json), neither there nor in adapter, final or best"
    )


def ready_model(
    model: StripedHyena2 | str | Path, *, device: str = "auto", dtype: DType | str = DType.AUTO
) -> StripedHyena2:
    """Return a loaded model as it is; load any other by `open_model`.

    Raises:
        UserError: As `open_model`.
    """
    if isinstance(model, StripedHyena2):
        return model
    choices: dict[str, Any] = {"dtype": dtype}  # may be text, which the options convert
    return open_model(ModelOptions(model=str(model), device=device, **choices))
