"""From a folder, a file or a name to a checkpoint, and from a checkpoint to a model."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stripedhyena2.checkpoint import hub, native, released
from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.files import read_tensors
from stripedhyena2.checkpoint.layouts import hf
from stripedhyena2.checkpoint.precision import doubt, precision_of
from stripedhyena2.checkpoint.published import (
    BUILT_IN,
    PUBLISHED,
    Precision,
    published_config,
    split_name,
)
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.config import ModelConfig, read_config
from stripedhyena2.device_map import (
    block_sizes,
    choose_devices,
    device_map,
    device_of,
    move_activations,
)
from stripedhyena2.float8.inference import Scales, has_scales, scaled_weight, use_scales
from stripedhyena2.model import StripedHyena2
from stripedhyena2.parametrization import folded_state

_LOG = logging.getLogger(__name__)


def load(
    path_or_name: str | Path,
    *,
    config: str | Path | None = None,
    device: str | torch.device | Sequence[torch.device] = "cpu",
    dtype: torch.dtype | None = torch.float32,
    float8: bool | None = None,
) -> StripedHyena2:
    """Load a model, ready to score, to decode or, without FP8, to train.

    Args:
        path_or_name: A native folder; a released .pt, one of its .partN files, or a safetensors
            file with the same keys; "nano"; or a published name such as "evo2_7b".
        config: The shape of a released file: its yml, our TOML, or a published name. Not needed
            if the folder has a yml or the file a published name.
        device: Where the weights go; of several devices, the smallest number that holds them is
            used, block after block.
        dtype: Of weights and activations; poles, residues and rotary frequencies stay at fp32
            or better, and so do final norm and head. None is the dtype of the stored embedding.
        float8: Whether the Hyena input projections compute in FP8, with the scales in the
            checkpoint; by default if a published model needs it (1B, 20B, 40B).

    Raises:
        CheckpointError: The checkpoint is missing, incomplete, or does not fit its config or the
            devices; or FP8 is requested and it has no scales.
        ConfigError: The config is invalid.
    """
    checkpoint = read_checkpoint(path_or_name, config=config)
    dtype = dtype or checkpoint.tensors["embedding.weight"].dtype
    blocks = _device_map(checkpoint, device, dtype, str(path_or_name))
    scales = _scales(checkpoint, str(path_or_name), float8)
    _say_once(doubt(checkpoint, str(path_or_name), blocks[0], float8=bool(scales)))
    with torch.device("meta"):
        model = StripedHyena2(checkpoint.config)
    try:
        use_scales(model, scales)
    except ValueError as error:
        raise CheckpointError(f"{path_or_name}: {error}") from None
    wide = torch.promote_types(dtype, torch.float32)
    fp32_tensors = {
        f"blocks.{index}.mixer.{name}"
        for index, mixer in enumerate(checkpoint.config.mixers)
        for name in mixer.fp32_tensors
    }
    state = {
        name: scaled_weight(tensor, scales[name], device_of(name, blocks))
        if name in scales
        else tensor.to(device_of(name, blocks), wide if name in fp32_tensors else dtype, copy=True)
        for name, tensor in checkpoint.tensors.items()
    }
    model.load_state_dict(state, assign=True)
    if len(set(blocks)) > 1:
        move_activations(model)
    return model


def _device_map(
    checkpoint: Checkpoint,
    device: str | torch.device | Sequence[torch.device],
    dtype: torch.dtype,
    origin: str,
) -> list[torch.device]:
    """A device for each block."""
    depth = checkpoint.config.depth
    if isinstance(device, str | torch.device):
        return [torch.device(device)] * depth
    sizes = block_sizes(checkpoint.tensors, depth, dtype.itemsize)
    try:
        chosen = choose_devices(sum(sizes), [torch.cuda.mem_get_info(each)[0] for each in device])
    except MemoryError as error:
        raise CheckpointError(
            f"{origin}: {error}; use more or larger devices, or --device cpu"
        ) from None
    if len(chosen) > 1:
        _say_once(f"{origin}: too large for one device, its blocks are spread over {len(chosen)}")
    return device_map(sizes, [device[index] for index in chosen])


def _scales(checkpoint: Checkpoint, origin: str, float8: bool | None) -> dict[str, Scales]:
    """The scales to compute with: as requested, or as a published model needs."""
    if float8 is None:
        float8 = precision_of(checkpoint) is not Precision.BF16
        required = False
    else:
        required = float8
    if not float8:
        return {}
    scales = trained_scales(checkpoint.extra_state, checkpoint.config, origin)
    if required and not scales:
        raise CheckpointError(f"{origin}: has no FP8 scales; load it without fp8")
    return scales


@cache
def _say_once(message: str | None) -> None:
    if message is not None:
        _LOG.warning(message)


def save(model: StripedHyena2, folder: Path, provenance: dict[str, Any]) -> None:
    """Write a model as a native checkpoint folder, its filters in their inference form.

    Raises:
        CheckpointError: The folder exists and is not a checkpoint, or cannot be written; or weights
            of the model were rounded to FP8.
    """
    if has_scales(model):
        raise CheckpointError(f"{folder}: weights rounded to FP8 are not saved; load without fp8")
    save_weights(model.config, folded_state(model), folder, provenance)


def save_weights(
    config: ModelConfig, weights: dict[str, torch.Tensor], folder: Path, provenance: dict[str, Any]
) -> None:
    """`save` for weights that are already folded, by their names in the model."""
    native.write(Checkpoint(config, weights, provenance=provenance), folder)


def read_checkpoint(path_or_name: str | Path, *, config: str | Path | None = None) -> Checkpoint:
    """Read a checkpoint of any layout; arguments and errors are those of `load`."""
    path, origin = _locate(path_or_name)
    if native.is_native(path):
        if config is not None:
            raise CheckpointError(
                f"{path}: a native checkpoint contains its own shape; drop --config"
            )
        return native.read(path)
    if hf.is_hf(path):
        return hf.read(path)
    file = _released_file(path) if path.is_dir() else path
    shape = _released_config(path_or_name, file, config)
    tensors, blobs = read_tensors(file)
    return Checkpoint(
        shape,
        released.to_ours(tensors, shape, str(file)),
        extra_state=blobs,
        provenance={"source": file.name, "layout": "released", **origin},
    )


def _locate(path_or_name: str | Path) -> tuple[Path, dict[str, str]]:
    """The path of the checkpoint (an existing path wins over a name), and its origin."""
    path = Path(path_or_name)
    if path.exists():
        return path, {}
    name = str(path_or_name)
    if native.is_native(BUILT_IN / name):
        return BUILT_IN / name, {}
    model, _ = split_name(name)
    if model in PUBLISHED:
        folder = hub.fetch(name)
        return folder, {"repository": PUBLISHED[model].repository, "commit": folder.name}
    names = ", ".join([*sorted(folder.name for folder in BUILT_IN.glob("[a-z]*")), *PUBLISHED])
    raise CheckpointError(f"no model {name!r}: no such file or folder, and not one of {names}")


def _released_file(folder: Path) -> Path:
    """The one checkpoint in a downloaded folder."""
    candidates = sorted(
        file for pattern in ("*.pt", "*.pt.part0", "*.safetensors") for file in folder.glob(pattern)
    )
    if len(candidates) != 1:
        found = ", ".join(file.name for file in candidates) or "none"
        raise CheckpointError(
            f"{folder}: contains neither config.toml (a native checkpoint) nor exactly one .pt or "
            f".safetensors file, but {found}; name the file"
        )
    return candidates[0]


def _released_config(
    path_or_name: str | Path, file: Path, config: str | Path | None
) -> ModelConfig:
    """The shape of a released file: as given, else from the yml beside it, else from its name."""
    if config is not None:
        return (
            published_config(str(config)) if str(config) in PUBLISHED else read_config(Path(config))
        )
    beside = file.with_suffix(".yml")  # as `evo2 convert` writes it
    if beside.is_file():
        return read_config(beside)
    for name in (split_name(str(path_or_name))[0], file.name.partition(".")[0]):
        if name in PUBLISHED:
            return published_config(name)
    if not released.has_suffix(file):
        raise CheckpointError(
            f"{file}: not a checkpoint: expected a folder with config.toml, or a .pt, .safetensors "
            "or .pt.part0 file"
        )
    raise CheckpointError(
        f"{file}: unknown shape; give --config with its yml or a published name "
        f"({', '.join(PUBLISHED)})"
    )
