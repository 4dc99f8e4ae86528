"""`evo2 eval`: what the evaluations share; each has a file of its own, `eval_<name>.py`.

L tokens, V vocabulary.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from evo2cli.workflows.figures import check_file
from evo2cli.workflows.likelihood import Progression
from evo2cli.workflows.results import Row, open_output, table_line
from stripedhyena2 import StripedHyena2

TABLES = (".tsv", ".json")


@torch.inference_mode()
def predict(
    model: StripedHyena2, so_far: Progression, bases: bytes
) -> tuple[Progression, Tensor, Tensor]:
    """Continue with `bases` in one forward pass, and tell how each of them was foreseen.

    Returns:
        How far the sequence has come; the token ids [L] of `bases`; and log-probabilities [L, V] in
        nats, each row given what stands before its base. Before the first base of a sequence there
        is nothing: then the first base has no row in either.
    """
    ids_L = torch.tensor(list(bases), device=model.embedding.weight.device)
    cache = so_far.cache.clone()
    logprobs_LV = model(ids_L[None], cache=cache)[0].log_softmax(dim=-1)
    following_V, seen_LV = logprobs_LV[-1].clone(), logprobs_LV[:-1]
    if so_far.following_V is None:
        ids_L = ids_L[1:]
    else:
        seen_LV = torch.cat([so_far.following_V[None], seen_LV])
    total = so_far.total + of_tokens(seen_LV, ids_L).sum().item()
    return Progression(cache, total, following_V), ids_L, seen_LV


def of_tokens(logprobs_LV: Tensor, ids_L: Tensor) -> Tensor:
    """The log-probability [L] of each token, in fp64."""
    return logprobs_LV.gather(1, ids_L[:, None])[:, 0].double()


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error; None for that of a single value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return fmean(values), error


def check_output(path: Path | None) -> None:
    """Refuse what `write_table` cannot write.

    Raises:
        UserError: The suffix is none of `TABLES`, or the folder is missing.
    """
    if path is not None:
        check_file(path, "--output", TABLES)


def write_table(path: Path | None, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write what was found, for None nothing: `rows` as TSV, or the whole `result` as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        return
    with open_output(path) as write:
        if path.suffix == ".json":
            write(json.dumps(result, allow_nan=False, indent=1).encode() + b"\n")
            return
        write(table_line(rows[0]))
        for row in rows:
            write(table_line(row.values()))


def length_label(length: int) -> str:
    """A length as it may be given: 8192 is 8k."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)


def shown(value: float, error: float | None, digits: int) -> str:
    """A mean and its standard error, as a page shows them."""
    text = f"{value:z.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"
