"""Whether this machine computes right, and which published models it can be trusted with."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from evo2cli import console
from evo2cli.doctor.checks import Outcome, check_model, checks
from evo2cli.doctor.losses import measure_losses, read_prompts
from evo2cli.doctor.machine import describe_machine
from evo2cli.doctor.models import describe_models, published_name
from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.models import open_model, pick_device
from stripedhyena2 import load
from stripedhyena2.float8.inference import has_scales


def examine(
    *,
    model: str | None = None,
    config: Path | None = None,
    prompts: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Everything `evo2 doctor` tells, as JSON values.

    Args:
        model: A model to test too, as `open_model` takes it.
        config: Its shape, where it does not tell.
        prompts: CSV of sequences, for its loss.
        device: As `open_model` takes it.

    Returns:
        machine, device, checks, models; and of a model: model, its own checks among the others, and
        losses.

    Raises:
        UserError: The model, the prompts or the device are not to be had.
    """
    if prompts is not None and model is None:
        raise UserError(f"--prompts {prompts}: whose loss? give --model")
    sequences = None if prompts is None else read_prompts(prompts)
    place = pick_device(device)
    machine = describe_machine()
    outcomes = list(_built_in(place))
    result: dict[str, Any] = {
        "machine": machine,
        "device": str(place),
        "models": describe_models(place, machine["cache_free_bytes"]),
    }
    if model is not None:
        opened = open_model(model, config=config, device=str(place)).requires_grad_(False)
        outcomes += [_named(model, outcome) for outcome in check_model(opened)]
        result["model"] = {"name": model, "fp8_projections": has_scales(opened)}
        if sequences is not None:
            result["losses"] = measure_losses(opened, published_name(model), sequences)
    result["checks"] = [_as_values(outcome) for outcome in outcomes]
    return result


def _built_in(device: torch.device) -> Iterator[Outcome]:
    """Operators, and the model inside the package, in the precisions that `device` is used with."""
    dtypes = [torch.float32, *([torch.bfloat16] if device.type == "cuda" else [])]
    tests = list(checks())
    with console.progress("self-test", len(dtypes) * (len(tests) + 1), "checks") as bar:
        exact = load("nano", dtype=torch.float64)
        for dtype in dtypes:
            for check in tests:
                yield check.outcome(device, dtype)
                bar.advance()
            yield from check_model(load("nano", device=device, dtype=dtype), exact)
            bar.advance()


def _as_values(outcome: Outcome) -> dict[str, Any]:
    """With None for errors that are no numbers, which JSON lacks."""
    values = {**vars(outcome), "passed": outcome.passed}
    for key in ("error", "error_of_wrong"):
        values[key] = values[key] if math.isfinite(values[key]) else None
    return values


def _named(model: str, outcome: Outcome) -> Outcome:
    return Outcome(**{**vars(outcome), "name": f"{model}: {outcome.name}"})


def require_health(result: dict[str, Any]) -> None:
    """Fail where a self-test did.

    Raises:
        UntrustedNumericsError: The first that failed is named.
    """
    failed = [check for check in result["checks"] if not check["passed"]]
    if failed:
        raise UntrustedNumericsError(
            f"{len(failed)} of {len(result['checks'])} self-tests failed: {_fault(failed[0])}"
        )
    losses = result.get("losses")
    if losses and losses["passed"] is False:
        raise UntrustedNumericsError(
            f"{result['model']['name']}: loss {losses['loss_as_published']:.4f} on these prompts, "
            f"published is {losses['published']:.4f}; its numbers here are not the published ones"
        )


def _fault(check: dict[str, Any]) -> str:
    name, error, tolerance = check["name"], check["error"], check["tolerance"]
    if error is None:
        return f"{name} gives NaN or infinity"
    if error > tolerance:
        return f"{name} is off by {error:.1e}, allowed is {tolerance:.0e}"
    return f"{name} does not notice {check['wrong']}"
