"""The folder of an adapter, in the format of `peft`.

adapter_config.json        its hyperparameters, and the modules that it adapts
adapter_model.safetensors  its tensors; the fingerprint of the base model is in the metadata

Names of tensors are `base_model.model.` and the path of the module in our class for Hugging Face,
which holds a `StripedHyena2` as `ATTRIBUTE`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from stripedhyena2.adapters.lora import LoRA, by_module, merged_weights, put_on
from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.checkpoint.shards import write_safetensors
from stripedhyena2.config import ModelConfig
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.model import StripedHyena2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ATTRIBUTE = "model"
PREFIX = f"base_model.model.{ATTRIBUTE}."
_BASE = "base_fingerprint"  # key in the metadata


@dataclass(frozen=True)
class Adapter:
    """An adapter as stored in a folder.

    Attributes:
        lora: Its hyperparameters.
        tensors: Its tensors by their names in the model.
        base: Name of the base model that it was trained on.
        base_fingerprint: Fingerprint of the weights of the base model; None if unknown.
    """

    lora: LoRA
    tensors: dict[str, Tensor]
    base: str
    base_fingerprint: str | None

    def check_base(self, config: ModelConfig, weights: Mapping[str, Tensor], origin: str) -> None:
        """Refuse a model other than the base model of the adapter.

        Args:
            config: The shape of the model.
            weights: Its weights as stored.
            origin: The adapter, for the message.

        Raises:
            CheckpointError: It is another model.
        """
        check_base(self.base, self.base_fingerprint, config, weights, origin)
        for module, parts in by_module(self.tensors).items():
            weight = weights.get(f"{module}.weight")
            width = parts["lora_A.weight"].shape[1]
            if weight is None or weight.shape[1] != width:
                raise CheckpointError(
                    f"{origin}: has an adapter of {width} channels for {module}, which this model "
                    f"does not have; use it with {self.base}"
                )

    def merge_into(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the base model with the adapter merged into them, in their own dtypes."""
        return merged_weights(weights, self.lora, self.tensors)

    def put_on(self, model: StripedHyena2) -> None:
        """Apply the adapter to a model that was loaded for inference; see `lora.put_on`."""
        put_on(model, self.lora, self.tensors)


def check_base(
    base: str,
    base_fingerprint: str | None,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    origin: str,
) -> None:
    """Refuse a model whose fingerprint is not that of the base model.

    Raises:
        CheckpointError: It is another model.
    """
    actual = fingerprint(config, weights)
    if base_fingerprint not in (None, actual):
        raise CheckpointError(
            f"{origin}: belongs to the model {base} (fingerprint {base_fingerprint}), not to this "
            f"one ({actual}); use it with {base}"
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the two files of an adapter into an existing folder."""
    lora = adapter.lora
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "target_modules": list(by_module(adapter.tensors)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in adapter.tensors.items()}
    fingerprint = adapter.base_fingerprint
    write_safetensors(
        tensors, folder / WEIGHTS, {} if fingerprint is None else {_BASE: fingerprint}
    )


def read_adapter(folder: Path) -> Adapter:
    """Read the folder of an adapter, written here or by `peft` for our class.

    Raises:
        CheckpointError: A file is missing or damaged, or describes another kind of adapter.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a complete adapter ({error})") from None
    lora = _lora(config, folder)
    tensors = {}
    for name, tensor in stored.items():
        if not name.startswith(PREFIX) or "lora_" not in name:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is not a LoRA weight of this model; names begin with "
                f"{PREFIX}blocks."
            )
        tensors[name.removeprefix(PREFIX)] = tensor
    base = str(config.get("base_model_name_or_path") or "unknown")
    return Adapter(lora, tensors, base, metadata.get(_BASE))


_UNSUPPORTED = ("rank_pattern", "alpha_pattern", "modules_to_save")


def _lora(config: Mapping[str, Any], folder: Path) -> LoRA:
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        kind = f"{config.get('peft_type')} with bias = {config.get('bias', 'none')!r}"
        raise CheckpointError(f"{folder}: is {kind}; only LORA without bias can be read")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise CheckpointError(f"{folder}: {key} = {config[key]!r} is not supported")
    try:
        return LoRA(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout", 0.0)),
            rslora=bool(config.get("use_rslora", False)),
            dora=bool(config.get("use_dora", False)),
            targets="|".join(_names(config.get("target_modules"))) or "all",
        )
    except KeyError as missing:
        raise CheckpointError(f"{folder / CONFIG}: the key {missing} is missing") from None


def _names(targets: Any) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or ())
