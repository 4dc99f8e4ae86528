"""`evo2 doctor`: self-test this machine, and list the published models it can run reliably."""

import math
from dataclasses import replace
from typing import Any

import torch

from evo2cli import console
from evo2cli.doctor.checks import Outcome, check_model, checks
from evo2cli.doctor.losses import PUBLISHED_LOSSES, measure_losses, read_prompts
from evo2cli.doctor.machine import describe_machine
from evo2cli.doctor.models import describe_models, published_name
from evo2cli.doctor.options import DoctorOptions
from evo2cli.errors import UntrustedNumericsError
from evo2cli.models import open_model, pick_device
from evo2cli.options import ModelOptions
from hyenakernels.float8.op import runs_float8
from stripedhyena2 import load
from stripedhyena2.float8.inference import float8_parts


def examine(options: DoctorOptions) -> dict[str, Any]:
    """Run all self-tests, and describe the machine and the published models.

    Returns:
        JSON values: machine, device, models, checks; with a model also model, and its checks among
        the others; with prompts also losses.

    Raises:
        UserError: The prompts cannot be read, or the device is not available.
        CheckpointError: The model cannot be read.
    """
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    device = pick_device(options.device)
    machine = describe_machine()
    outcomes = _check_device(device)
    result: dict[str, Any] = {
        "machine": machine,
        "device": str(device),
        "models": describe_models(device, machine["memory_bytes"], machine["cache_free_bytes"]),
    }
    if options.model is not None:
        model = open_model(
            ModelOptions(model=options.model, config=options.config, device=str(device))
        )
        model.requires_grad_(False)
        for outcome in check_model(model):
            outcomes.append(replace(outcome, name=f"{options.model}: {outcome.name}"))
        result["model"] = {
            "name": options.model,
            "fp8_projections": float8_parts(model) is not None,
        }
        if prompts is not None:
            published = PUBLISHED_LOSSES.get(published_name(options.model) or "")
            result["losses"] = measure_losses(model, prompts, published)
    result["checks"] = [_as_json(outcome) for outcome in outcomes]
    return result


def _check_device(device: torch.device) -> list[Outcome]:
    """Test the operators and the built-in model in all precisions that are used on `device`."""
    dtypes = [torch.float32, *([torch.bfloat16] if device.type == "cuda" else [])]
    float8 = device.type != "cuda" or runs_float8(device)
    if not float8:
        name = torch.cuda.get_device_name(device)
        console.warn(f"FP8 products are not tested: {name} does not support them, nor --dtype fp8")
    tests, outcomes = list(checks(float8=float8)), []
    with console.progress("self-test", len(dtypes) * (len(tests) + 1), "checks") as bar:
        exact = load("nano", dtype=torch.float64)
        for dtype in dtypes:
            for check in tests:
                outcomes.append(check.outcome(device, dtype))
                bar.advance()
            outcomes += check_model(load("nano", device=device, dtype=dtype), exact)
            bar.advance()
    return outcomes


def _as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON values, with None for an error that is NaN or infinite."""
    values = {**vars(outcome), "passed": outcome.passed}
    for key in ("error", "error_of_wrong"):
        values[key] = values[key] if math.isfinite(values[key]) else None
    return values


def require_health(result: dict[str, Any]) -> None:
    """Raise an error if a self-test or the comparison with a published loss failed.

    Raises:
        UntrustedNumericsError: The message names the first failure.
    """
    failed = [check for check in result["checks"] if not check["passed"]]
    if failed:
        name, error, tolerance = (failed[0][key] for key in ("name", "error", "tolerance"))
        if error is None:
            why = f"{name} gives NaN or infinity"
        elif error > tolerance:
            why = f"{name} has an error of {error:.1e}, more than {tolerance:.0e}"
        else:
            why = f"{name} does not detect the mistake: {failed[0]['wrong']}"
        raise UntrustedNumericsError(
            f"{len(failed)} of {len(result['checks'])} self-tests failed: {why}"
        )
    losses = result.get("losses")
    if losses and losses["passed"] is False:
        raise UntrustedNumericsError(
            f"{result['model']['name']}: loss {losses['loss_as_published']:.4f} on these prompts, "
            f"published is {losses['published']:.4f}; this machine does not reproduce the model"
        )
