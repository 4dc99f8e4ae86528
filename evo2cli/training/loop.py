"""The training loop: steps, validation, checkpoints, and metrics of each step.

B windows, L predictions, V vocabulary.
"""

import contextlib
import math
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.data.loader import WindowLoader, Windows
from evo2cli.errors import UntrustedNumericsError
from evo2cli.training.clock import Clock
from evo2cli.training.deadline import step_deadline
from evo2cli.training.engine import Engine
from evo2cli.training.loss import read_windows, target_weights, weighted_loss
from evo2cli.training.metrics import MetricsLogger, draw_curve
from evo2cli.training.plan.flops import training_flops_per_token
from evo2cli.training.plan.hardware import peak_flops
from evo2cli.training.recipe import Recipe
from evo2cli.training.schedule import learning_rate
from evo2cli.training.state import RunFolder
from stripedhyena2.diagnosis import first_nonfinite_layer

NATS_PER_BIT = math.log(2)
_WAY_OUT = "lower learning_rate, or delete the newest checkpoints to resume from an earlier one"


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        step: Number of steps done.
        finished: Whether these are all steps; otherwise the run was asked to stop, and saved.
        valid_bits: Bits per base at the last validation; None without validation.
        skipped: Number of steps that were skipped because their gradient was not finite.
    """

    step: int
    finished: bool
    valid_bits: float | None
    skipped: int = 0


@dataclass
class Trainer:
    """A run in progress; every rank has one.

    Attributes:
        recipe: The recipe.
        engine: The model, its optimizer and the ranks that share them.
        loader: The training windows.
        valid: The validation windows of each held-out set; may be empty.
        folder: The folder of the run.
    """

    recipe: Recipe
    engine: Engine
    loader: WindowLoader
    valid: Mapping[str, Windows]
    folder: RunFolder
    _skipped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.ranks = self.engine.ranks
        self.micro = self.recipe.micro(self.ranks.world)
        data = self.recipe.data
        self._weight_of_byte = target_weights(
            lowercase=data.lowercase_weight, end_of_document=data.end_of_document_weight
        )
        self._flops = training_flops_per_token(self.engine.model.config, self.recipe.batch.length)
        on_gpu = self.ranks.device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name(self.ranks.device)) if on_gpu else None

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the last step, or until asked to stop.

        Raises:
            UntrustedNumericsError: A loss or a gradient is not finite.
            UserError: A checkpoint cannot be read or written.
        """
        recipe, steps = self.recipe, self.recipe.optimizer.steps
        saved = self.folder.resume(self.engine)
        step, self._skipped = saved["step"], saved.get("skipped", 0)
        if step and self.ranks.is_first:
            console.say(f"resuming from step {step:,} of {steps:,}")
        bits: float | None = None
        logger = MetricsLogger(self.folder, steps, step, self._caption(), tracking=recipe.tracking)
        with (
            _stop_requests() as stop_requested,
            step_deadline(recipe.guard.step_deadline, self.folder.path, self.ranks) as restart,
            logger,
        ):
            last = step == steps
            while not last:
                restart()
                record: dict[str, Any] = {**self.step(step)}
                step += 1
                if step == steps or step % recipe.validation.every == 0:
                    record |= self.validate()
                    bits = record.get("valid_bits")
                logger.log(record)
                last = self.ranks.any(step == steps or stop_requested())
                if last or step % recipe.checkpoint.every == 0:
                    restart()
                    self.folder.save(step, self.engine, {"skipped": self._skipped})
        if step == steps and bits is None:  # was killed between the last step and the final model
            bits = self.validate().get("valid_bits")
        if self.ranks.is_first:
            draw_curve(self.folder)
        return Outcome(step, step == steps, bits, self._skipped)

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step (0-based).

        Returns:
            step (1-based), loss (nats) and bits (per base), both None for a skipped step,
            learning_rate, gradient_norm, tokens (in total), seconds, rate and rate_per_gpu (tokens
            per second), mfu (if the peak of the GPU is known), memory_gib (the peak of a GPU),
            skipped (steps in total, if there are any), and with several ranks slowest_rank and
            slowest_over_median (by the time of their own work).
        """
        clock = Clock(self.ranks.device)
        with clock.own():
            windows = self.loader.windows(step, self.ranks.share(self.recipe.batch.sequences))
            ids, targets, weights = self._read(windows, self._weight_of_byte)
        rate = learning_rate(step, self.recipe.optimizer)
        loss = self._differentiate(ids, targets, weights, clock).item()
        norm = self.engine.step(rate)
        finite = math.isfinite(loss + norm)
        if not finite:
            self._skip_or_stop(step + 1, loss, norm, ids)
        return {
            "step": step + 1,
            "loss": loss if finite else None,
            "bits": loss / NATS_PER_BIT if finite else None,
            "learning_rate": rate,
            "gradient_norm": norm if finite else None,
            "tokens": (step + 1) * self.recipe.batch.tokens,
            **self._speed(clock),
            **({"skipped": self._skipped} if self._skipped else {}),
        }

    def _differentiate(self, ids: Tensor, targets: Tensor, weights: Tensor, clock: Clock) -> Tensor:
        """Accumulate the gradient of a step; returns the loss, in nats per unit of weight.

        Losses are divided by the total weight of all micro-batches on all ranks, so the result does
        not depend on how a step is divided.
        """
        total_weight = self.ranks.sum(weights.sum()).clamp_min(1e-6)
        loss = torch.zeros((), device=self.ranks.device)
        for start in range(0, len(ids), self.micro):
            rows = slice(start, start + self.micro)
            with clock.own():
                logits = self.engine.forward(ids[rows])
                part = weighted_loss(logits, targets[rows], weights[rows]) / total_weight
            del logits
            self.engine.backward(part, last=start + self.micro >= len(ids))
            loss += part.detach()
        return self.ranks.sum(loss)

    def _speed(self, clock: Clock) -> dict[str, Any]:
        seconds, own = clock.read()
        rate = self.recipe.batch.tokens / seconds
        each = rate / self.ranks.world
        speed: dict[str, Any] = {
            "seconds": round(seconds, 4),
            "rate": round(rate),
            "rate_per_gpu": round(each),
        }
        if self._peak is not None:
            speed["mfu"] = round(each * self._flops / self._peak, 4)
        if self.ranks.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.ranks.device) / 2**30
            speed["memory_gib"] = round(max(self.ranks.gather(peak)), 2)
        if self.ranks.world > 1:
            times = self.ranks.gather(own)
            speed["slowest_rank"] = times.index(max(times))
            speed["slowest_over_median"] = round(max(times) / statistics.median(times), 2)
        return speed

    def _caption(self) -> str:
        """The formula of the panel's MFU."""
        flops = f"{self._flops / 1e9:,.2f} GFLOP per token, forward and backward"
        if self._peak is None:
            return f"{flops}, without recomputation"
        return f"MFU = tokens/s/GPU x {flops} / {self._peak / 1e12:,.0f} TFLOP/s"

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Bits per base on the validation windows; A, C, G and T all count 1, in either case.

        The model is the one that a checkpoint of this step would have, so with averaged weights if
        the recipe keeps any.

        Returns:
            valid_bits over all held-out sets, and valid_bits_of each set if there are several;
            nothing without held-out sets.

        Raises:
            UntrustedNumericsError: The loss is not finite.
        """
        with self.engine.averaged():
            totals = self.ranks.sum(self._sums())
        if not totals[:, 1].any():
            return {}
        total, *each = torch.cat([totals.sum(dim=0, keepdim=True), totals]).unbind()
        bits = [
            (nats / weight).item() / NATS_PER_BIT if weight else None
            for nats, weight in (total, *each)
        ]
        if not all(value is None or math.isfinite(value) for value in bits):
            raise UntrustedNumericsError(f"validation: the loss is not finite; {_WAY_OUT}")
        found = {"valid_bits": bits[0]}
        if len(each) > 1:
            found["valid_bits_of"] = dict(zip(self.valid, bits[1:], strict=True))
        return found

    def _sums(self) -> Tensor:
        """Nats and weight, summed over this rank's share of every held-out set, [sets, 2]."""
        weight_of_byte = target_weights(lowercase=1, end_of_document=0)
        sums = torch.zeros(len(self.valid), 2, dtype=torch.float64, device=self.ranks.device)
        for row, windows in zip(sums, self.valid.values(), strict=True):
            share = windows.share(self.ranks.group, self.ranks.num_groups)
            for start in range(0, -(-len(windows) // self.ranks.num_groups), self.micro):
                part = share[start : start + self.micro]
                # A rank without a window left still runs the model, for the others need its shard.
                ids, targets, weights = self._read(part or windows[:1], weight_of_byte)
                weights = weights if len(part) else torch.zeros_like(weights)
                row[0] += weighted_loss(self.engine.forward(ids), targets, weights)
                row[1] += weights.sum()
        return sums

    def _read(self, windows: Windows, weight_of_byte: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, targets and weights of the positions that this rank computes."""

        def to_device(array: Any) -> Tensor:
            tensor = torch.from_numpy(array)
            if self.ranks.device.type == "cuda":
                tensor = tensor.pin_memory()
            return tensor.to(self.ranks.device, non_blocking=True)

        ids_BT, targets_BT, weights_BT = read_windows(
            to_device(windows.tokens),
            to_device(windows.reverse),
            to_device(windows.masked),
            weight_of_byte,
        )
        own = slice(*self.engine.part)
        return ids_BT[:, own], targets_BT[:, own], weights_BT[:, own]

    def _skip_or_stop(self, step: int, loss: float, norm: float, ids: Tensor) -> None:
        guard = self.recipe.guard
        if guard.on_nonfinite == "stop":
            self._stop(step, loss, norm, ids)
        self._skipped += 1
        self.engine.nonfinite_gradient()
        if self._skipped > guard.skip_limit:
            raise UntrustedNumericsError(
                f"step {step}: {self._skipped} steps were not finite, more than guard.skip_limit = "
                f"{guard.skip_limit}; {_WAY_OUT}"
            )

    def _stop(self, step: int, loss: float, norm: float, ids: Tensor) -> NoReturn:
        """Stop the run with the rank and the layer, or else the gradient, that is not finite."""
        gradient = self.engine.nonfinite_gradient()
        layers = [
            first_nonfinite_layer(self.engine.model, part, self.engine.forward)
            for part in torch.split(ids, self.micro)
        ]
        bad = [f"the output of {layer}" for layer in layers if layer]
        bad += [f"the gradient of {gradient}"] if gradient else []
        found = self.ranks.collect(bad[0] if bad else None)
        rank, what = next(
            ((rank, what) for rank, what in enumerate(found) if what), (None, "a gradient")
        )
        where = f" on rank {rank}" if self.ranks.world > 1 and rank is not None else ""
        raise UntrustedNumericsError(
            f"step {step}: {what} is not finite{where} (loss {loss}, gradient norm {norm}); "
            f"{_WAY_OUT}"
        )


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield whether SIGTERM was received, which does not kill the process within the context."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    except ValueError:  # only the main thread can handle signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
