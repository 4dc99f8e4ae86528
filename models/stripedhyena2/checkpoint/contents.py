"""The contents of a checkpoint, whatever layout it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import InputError
from stripedhyena2.model import StripedHyena2


class CheckpointError(InputError):
    """An unusable checkpoint: the message names the file, tensor, shapes and the way out."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        config: The shape of the model.
        tensors: The weights under the model's own names, in their stored dtypes; those of a file
            are read from it again on every access.
        training_form: The factors that some weights are trained as, if the checkpoint has them: by
            the name of the weight and of the factor, as in
            "blocks.2.mixer.operator.log_poles_DS.p".
        files: The files it was read from.
        extra_state: FP8 scale records of released files, as raw bytes. Never executed.
        provenance: Where the weights come from, as JSON values.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    extra_state: dict[str, bytes] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    training_form: Mapping[str, Tensor] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor of a model of this shape, without allocating it."""
    with torch.device("meta"):
        model = StripedHyena2(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# The dtypes that weights are stored in.
WEIGHTS = ("bfloat16", "float16", "float32", "float64")


def kind_of(tensor: Tensor) -> str:
    """The dtype of a dense tensor; for any other tensor, its kind, such as "nested"."""
    if tensor.is_meta:
        return "meta (without data)"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return str(tensor.dtype).removeprefix("torch.")


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], origin: str
) -> None:
    """Check names, shapes and dtypes of tensors against those of a model.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or has the wrong shape or dtype; the
            message names the first.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{origin}: tensor {name!r} {list(shape)} is missing; is this the right config?"
            )
        if (kind := str(tensors[name].dtype).removeprefix("torch.")) not in WEIGHTS:
            raise CheckpointError(
                f"{origin}: tensor {name!r} is {kind}, not a weight; weights are dense "
                f"{', '.join(WEIGHTS)}"
            )
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{origin}: tensor {name!r} is {list(tensors[name].shape)}, expected "
                f"{list(shape)}; is this the right config?"
            )
    for name in tensors:
        if name not in expected:
            raise CheckpointError(
                f"{origin}: tensor {name!r} {list(tensors[name].shape)} is not part of this model; "
                "is this the right config?"
            )
