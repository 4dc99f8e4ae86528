"""Reproduce the published loss of a published model on the prompts of its publisher.

The losses are from the test of ArcInstitute/evo2: the mean over prompts of the cross-entropy per
token, where that of each prompt is computed from bf16 logits and rounded to bf16. It is computed
here in the same way for comparison, and also in fp32.

L tokens, V vocabulary.
"""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.errors import UserError
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import CHUNK, token_ids

PUBLISHED_LOSSES = {
    "evo2_1b_base": 0.5019531,
    "evo2_7b_base": 0.3520508,
    "evo2_7b": 0.3476563,
    "evo2_20b": 0.2166748,
    "evo2_40b_base": 0.2149658,
    "evo2_40b": 0.2159424,
}
TOLERANCE = 1e-3
COLUMNS = ("sequence", "sequences", "seq", "prompt")


def read_prompts(path: Path) -> list[str]:
    """Read the sequences of a CSV with a header: a column named as in `COLUMNS`, or else the first.

    Raises:
        UserError: The file cannot be read, or a sequence is shorter than two bases.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--prompts {path}: cannot be read as CSV ({error})") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in COLUMNS if name in header), 0)
    prompts = [row[column].strip() if len(row) > column else "" for row in rows[1:]]
    if not prompts:
        raise UserError(f"--prompts {path}: has no line below its header")
    for number, prompt in enumerate(prompts, 2):
        if len(prompt) < 2 or not prompt.isascii():
            raise UserError(f"--prompts {path}: line {number} has no sequence of two or more bases")
    return prompts


def measure_losses(
    model: StripedHyena2, prompts: list[str], published: float | None, *, chunk: int = CHUNK
) -> dict[str, Any]:
    """Measure the mean loss over prompts, in nats per token, and compare it with the published one.

    Args:
        model: Model to evaluate.
        prompts: Sequences.
        published: Published loss of the model on these prompts, or None.
        chunk: Bases in one forward pass.

    Returns:
        prompts (their number), loss (fp32), loss_as_published (bf16, as the published one),
        published, and passed: whether the last two agree within `TOLERANCE`; None without a
        published loss.
    """
    losses = []
    with console.progress("prompts", sum(map(len, prompts)), "bases") as bar:
        for prompt in prompts:
            losses.append(_losses(model, prompt.encode(), chunk))
            bar.advance(len(prompt))
    exact, rounded = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    return {
        "prompts": len(prompts),
        "loss": exact,
        "loss_as_published": rounded,
        "published": published,
        "passed": None if published is None else abs(rounded - published) <= TOLERANCE,
    }


@torch.inference_mode()
def _losses(model: StripedHyena2, bases: bytes, chunk: int) -> tuple[float, float]:
    """The mean loss of one prompt: in fp32, and in bf16 as the published one."""
    ids_L, cache = token_ids(model, bases), model.new_cache(1)
    exact, rounded = [], []
    for start in range(0, len(bases) - 1, chunk):
        inputs_L, targets_L = ids_L[start : start + chunk], ids_L[start + 1 : start + chunk + 1]
        logits_LV = model(inputs_L[None], cache=cache)[0, : len(targets_L)]
        exact.append(_logprobs(logits_LV, targets_L).double())
        rounded.append(_logprobs(logits_LV.bfloat16(), targets_L).float())
    mean = -torch.cat(rounded).mean().bfloat16()
    return -torch.cat(exact).mean().item(), mean.item()


def _logprobs(logits_LV: Tensor, targets_L: Tensor) -> Tensor:
    return logits_LV.log_softmax(dim=1).gather(1, targets_L[:, None])[:, 0]
