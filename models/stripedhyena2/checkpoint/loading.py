"""From a folder, a file or a name to a checkpoint, and from a checkpoint to a model."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hyenakernels.float8.op import runs_float8
from hyenakernels.float8.reference import Float8Weight
from stripedhyena2.checkpoint.built_in import built_in_models, find_built_in
from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.layouts import LAYOUTS, bridge, hf, layout_of, native
from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.precision import precision_of, precision_warning
from stripedhyena2.checkpoint.published import (
    LICENSE,
    PUBLISHED,
    Precision,
    published_config,
    split_name,
)
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.checkpoint.sources import Source, open_source
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ModelConfig, read_config
from stripedhyena2.device_map import (
    block_sizes,
    choose_devices,
    device_map,
    device_of,
    move_activations,
)
from stripedhyena2.errors import InputError, reason_of
from stripedhyena2.float8.inference import (
    Scales,
    float8_parts,
    require_float8,
    round_products,
    scaled_weight,
    use_scales,
)
from stripedhyena2.layers import projection_names
from stripedhyena2.model import StripedHyena2
from stripedhyena2.parametrization import folded_state

_LOG = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


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
            file with the same keys; a built-in model such as "nano"; or a published one such as
            "evo2_7b".
        config: The shape of a released file: its yml, our TOML, or a published name. Not needed
            if there is a yml in the folder or the file has a published name.
        device: Where the weights go; if there are several devices, the smallest number that fits
            the weights is used, with consecutive blocks on each.
        dtype: The dtype of weights and activations; poles, residues and rotary frequencies stay in
            fp32 or better, and so do the final norm and the head. None for the dtype of the stored
            embedding.
        float8: True: all projections and MLPs compute in FP8, with one byte per weight. None: only
            the Hyena input projections of published models that need it (1B, 20B, 40B), with the
            scales they were trained with, which True keeps too. False: nothing does.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete, does not match its config, or does
            not fit the devices.
        ConfigError: The config is invalid.
        InputError: A device is not available, or the dtype is not one of weights; or FP8 is
            requested on a GPU that does not support it, or does not for these widths.
    """
    check_placement(device, dtype)
    checkpoint = read_checkpoint(path_or_name, config=config)
    dtype = dtype or checkpoint.tensors["embedding.weight"].dtype
    scales = {} if float8 is False else _scales(checkpoint, str(path_or_name))
    with torch.device("meta"):
        model = StripedHyena2(checkpoint.config)
    try:
        use_scales(model, scales)
    except ValueError as error:
        raise CheckpointError(f"{path_or_name}: {error}") from None
    rounded: set[str] = set()
    if float8:
        names = projection_names(checkpoint.config)
        for candidate in [device] if isinstance(device, str | torch.device) else device:
            require_float8(model, names, torch.device(candidate))
        rounded = {f"{name}.weight" for name in round_products(model, names)}
    blocks = _device_map(checkpoint, device, dtype, rounded | set(scales), str(path_or_name))
    _warn_once(precision_warning(checkpoint, str(path_or_name), blocks[0], float8=bool(scales)))
    wide = torch.promote_types(dtype, torch.float32)
    fp32_tensors = {
        f"blocks.{index}.mixer.{name}"
        for index, mixer in enumerate(checkpoint.config.mixers)
        for name in mixer.fp32_tensors
    }
    state: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        target = device_of(name, blocks)
        if name in scales:
            state[name] = scaled_weight(tensor, scales[name], target)
        elif name in rounded:
            weight = Float8Weight.rounded(tensor.to(target))
            state[name] = weight.values_OI
            state[f"{name.removesuffix('weight')}scale_O1"] = weight.scale_O1
        else:
            state[name] = tensor.to(target, wide if name in fp32_tensors else dtype, copy=True)
    model.load_state_dict(state, assign=True)
    if len(set(blocks)) > 1:
        move_activations(model)
    return model


def check_placement(
    device: str | torch.device | Sequence[torch.device], dtype: torch.dtype | None
) -> None:
    """Refuse devices that are not available, and dtypes that weights cannot have.

    Raises:
        InputError: The message names the argument and its value.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(map(str, DTYPES))}")
    devices = [device] if isinstance(device, str | torch.device) else device
    if not devices:
        raise InputError("device=[]: name at least one device")
    for candidate in devices:
        try:
            torch.empty(0, device=candidate)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device={str(candidate)!r}: not available here ({reason_of(error)}); use 'cpu'"
            ) from None


def _device_map(
    checkpoint: Checkpoint,
    device: str | torch.device | Sequence[torch.device],
    dtype: torch.dtype,
    float8: set[str],
    origin: str,
) -> list[torch.device]:
    """A device for each block; weights in `float8` take one byte, if all devices support FP8."""
    depth = checkpoint.config.depth
    if isinstance(device, str | torch.device):
        return [torch.device(device)] * depth
    one_byte = float8 if all(runs_float8(candidate) for candidate in device) else set()
    sizes = block_sizes(Tensors.of(checkpoint.tensors).like, depth, dtype.itemsize, one_byte)
    try:
        chosen = choose_devices(
            sum(sizes), [torch.cuda.mem_get_info(candidate)[0] for candidate in device]
        )
    except MemoryError as error:
        raise CheckpointError(
            f"{origin}: {error}; use more or larger devices, or the CPU"
        ) from None
    if len(chosen) > 1:
        _warn_once(f"{origin}: too large for one device, its blocks are spread over {len(chosen)}")
    return device_map(sizes, [device[index] for index in chosen])


def _scales(checkpoint: Checkpoint, origin: str) -> dict[str, Scales]:
    """The FP8 scales that a published model was trained with, if it needs them."""
    if precision_of(checkpoint) is Precision.BF16:
        return {}
    return trained_scales(checkpoint.extra_state, checkpoint.config, origin)


@cache
def _warn_once(message: str | None) -> None:
    if message is not None:
        _LOG.warning(message)


def save(model: StripedHyena2, folder: str | Path, provenance: dict[str, Any]) -> None:
    """Write a model as a native checkpoint folder, with its filters in inference form.

    Raises:
        CheckpointError: The folder exists and is not a checkpoint, or cannot be written; or weights
            of the model are in FP8.
    """
    if float8_parts(model):
        raise CheckpointError(f"{folder}: weights rounded to FP8 are not saved; load without fp8")
    save_weights(model.config, folded_state(model), Path(folder), provenance)


def save_weights(
    config: ModelConfig, weights: dict[str, torch.Tensor], folder: Path, provenance: dict[str, Any]
) -> None:
    """`save` for weights that are already folded, by their names in the model."""
    native.write(Checkpoint(config, weights, provenance=provenance), folder)


def read_checkpoint(path_or_name: str | Path, *, config: str | Path | None = None) -> Checkpoint:
    """Read a checkpoint of any layout; its tensors are loaded lazily.

    Arguments and errors are those of `load`.
    """
    path, origin = _locate(path_or_name)
    if native.is_native(path):
        if config is not None:
            raise CheckpointError(
                f"{path}: a native checkpoint contains its own shape; leave out the config"
            )
        return native.read(path)
    source = open_source(path, lambda names: layout_of(names) is not None)
    layout = layout_of(list(source.tensors))
    if layout is None:
        if any(".lora_" in name for name in source.tensors):
            raise CheckpointError(
                f"{source.path}: is an adapter, not a model; give the model that it was trained on"
            )
        names = ", ".join(list(source.tensors)[:3])
        raise CheckpointError(
            f"{source.path}: its tensors ({names}, ...) have the names of no known layout; known "
            f"are {', '.join(dict.fromkeys(known.name for known in LAYOUTS))}"
        )
    shape = _shape(path_or_name, source, config, layout)
    provenance: dict[str, Any] = {"source": source.path.name, "layout": layout.stored_as, **origin}
    if before := native.provenance_of(source.path.parent):  # of a folder that we wrote
        provenance["before"] = before
    if source.unwrapped:
        provenance["unwrapped"] = list(source.unwrapped)
        _warn_once(f"{source.path}: taken out of {' and '.join(source.unwrapped)}")
    return Checkpoint(
        shape,
        layout.to_ours(source.tensors, shape, str(source.path)),
        layout.extra_state(source.blobs or native.extra_state_of(source.path.parent)),
        provenance,
        layout.training_form(source.tensors, shape),
        source.files,
    )


def named_shape(name: str | Path) -> ModelConfig | None:
    """The shape of a built-in or published model, unless a path has its name; without network."""
    built_in, (model, _) = find_built_in(name), split_name(str(name))
    if built_in is not None:
        return read_config(built_in / native.CONFIG)
    return published_config(model) if model in PUBLISHED and not Path(name).exists() else None


def _locate(path_or_name: str | Path) -> tuple[Path, dict[str, str]]:
    """The path of a checkpoint (an existing path goes before a name), and its origin."""
    path, name = Path(path_or_name), str(path_or_name)
    if name and (path.exists() or path.with_name(f"{path.name}.part0").exists()):
        return path, {}
    if (built_in := find_built_in(name)) is not None:
        return built_in, {}
    from stripedhyena2.checkpoint import hub  # loads an HTTP client, which no local file needs

    model, _ = split_name(name)
    if model in PUBLISHED or hub.is_repository(name):
        folder = hub.fetch(name)
        published = PUBLISHED.get(model)
        repository = published.repository if published else model
        license_of = {"license": LICENSE} if published else {}
        return folder, {"repository": repository, "commit": folder.name, **license_of}
    names = ", ".join([*built_in_models(), *PUBLISHED])
    raise CheckpointError(
        f"no model {name!r}: no such file or folder, not one of {names}, and not the owner/name of "
        "a repository on the hub"
    )


def _shape(
    path_or_name: str | Path, source: Source, config: str | Path | None, layout: Layout
) -> ModelConfig:
    """The shape: from `config`, else from a file beside the tensors, else from a published name."""
    if config is not None:
        return named_shape(config) or read_config(Path(config))
    if source.shape is not None:
        return _described(source.shape)
    for name in (split_name(str(path_or_name))[0], source.path.name.partition(".")[0]):
        model = name.removeprefix("savanna_")
        if model in PUBLISHED:
            return published_config(model)
    fitting = [name for name in PUBLISHED if _fits(source, layout, published_config(name))]
    names = f"{' or '.join(fitting)}, which fit its tensors" if fitting else ", ".join(PUBLISHED)
    raise CheckpointError(
        f"{source.path}: unknown shape of a {layout.name} checkpoint; give a config: its yml, the "
        f"config.toml of a native checkpoint, or a published name ({names})"
    )


def _fits(source: Source, layout: Layout, config: ModelConfig) -> bool:
    try:
        layout.to_ours(source.tensors, config, "")
    except CheckpointError:
        return False
    return True


def _described(file: Path) -> ModelConfig:
    """The shape in a file that a training program wrote beside the tensors."""
    if file.name == hf.CONFIG:
        return hf.read_config_file(file)
    if file.suffix == ".yaml":
        return bridge.read_run_config(file)
    return read_config(file)
