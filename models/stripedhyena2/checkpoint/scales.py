"""The FP8 scales of released files, read from their records without executing pickled code.

For some layers a released file has an `_extra_state`: the FP8 state of Transformer Engine, a pickle
inside the file. Two of its numbers matter: scale_fwd[0], for the input of the layer, and
scale_fwd[1], for its weight. Only the Hyena input projections ran in FP8.
"""

import io
import math
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from stripedhyena2.checkpoint.contents import WEIGHTS, CheckpointError, kind_of
from stripedhyena2.checkpoint.pickles import UNREADABLE, Inert, check_record
from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import reason_of
from stripedhyena2.float8.inference import Scales

_MAKER = "transformer_engine."


def trained_scales(
    records: Mapping[str, bytes], config: ModelConfig, origin: str
) -> dict[str, Scales]:
    """The scales of the Hyena input projections, by the names of their weights in the model.

    Args:
        records: `Checkpoint.extra_state`.
        config: Shape of the model.
        origin: Where the records come from, for error messages.

    Returns:
        Scales of every Hyena block; empty if the checkpoint has none.

    Raises:
        CheckpointError: A record is unreadable, or only some blocks have scales.
    """
    present, missing = {}, []
    for index, mixer in enumerate(config.mixers):
        if mixer.float8_record is None:
            continue
        name = f"blocks.{index}.{mixer.float8_record}"
        scales = _read(records.get(name, b""), f"{origin}: {name}")
        if scales is None:
            missing.append(name)
        else:
            present[f"blocks.{index}.mixer.project_in.weight"] = scales
    if present and missing:
        raise CheckpointError(
            f"{origin}: {missing[0]} has no FP8 scales, but {len(present)} other blocks have them"
        )
    return present


def _read(record: bytes, name: str) -> Scales | None:
    """The scales of one layer; None if it has none."""
    if not record:
        return None
    try:
        check_record(record, name)
        unknown = get_unsafe_globals_in_checkpoint(io.BytesIO(record))
        inert: list[Any] = [(Inert, known) for known in unknown if known.startswith(_MAKER)]
        with safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused afterwards
            state = torch.load(io.BytesIO(record), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{name}: contains more than FP8 scales and is not opened, because that would run its "
            "code; get the file from its publisher, or load it without fp8"
        ) from None
    except UNREADABLE as error:
        raise CheckpointError(
            f"{name}: not a readable record of FP8 scales ({reason_of(error)})"
        ) from None
    if not isinstance(state, Mapping) or "scale_fwd" not in state:
        return None
    return _checked(state["scale_fwd"], name)


def _checked(values: object, name: str) -> Scales:
    if not (
        isinstance(values, Tensor)
        and kind_of(values) in WEIGHTS
        and values.ndim == 1
        and len(values) >= 2
    ):
        raise CheckpointError(f"{name}: scale_fwd must be a 1-D tensor with at least two scales")
    pair = [float(value) for value in values[:2]]
    if not all(math.isfinite(value) and value > 0 for value in pair):
        raise CheckpointError(
            f"{name}: scales {pair[0]:g}, {pair[1]:g} must be positive and finite"
        )
    return Scales(*pair)
