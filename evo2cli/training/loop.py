"""The training loop: optimizer steps, validation, checkpoints and metrics.

Data and loss come from an `Objective`: next-base prediction in `language`, labels in
`evo2cli.finetune`.
"""

import contextlib
import gc
import math
import signal
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.data.sampler import keyed_number
from evo2cli.errors import UntrustedNumericsError, counted
from evo2cli.processes import handled_stops
from evo2cli.training.best import Best
from evo2cli.training.clock import Clock
from evo2cli.training.deadline import step_deadline
from evo2cli.training.engine import Engine
from evo2cli.training.gpu_memory import read_memory
from evo2cli.training.metrics import MetricsLogger, draw_curve
from evo2cli.training.objective import WAY_OUT, Batch, Objective
from evo2cli.training.optimizer import learning_rate
from evo2cli.training.plan.hardware import peak_flops
from evo2cli.training.recipe import Recipe
from evo2cli.training.state import RunFolder
from stripedhyena2.diagnosis import first_nonfinite_layer


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        step: Number of steps done.
        finished: Whether training is complete. A run that was told to stop is not finished but has
            saved a checkpoint, even if the signal came in the last step.
        valid: Metrics of the last validation; empty without validation.
        skipped: Number of steps that were skipped because their gradient was not finite.
    """

    step: int
    finished: bool
    valid: dict[str, Any]
    skipped: int = 0

    @property
    def valid_bits(self) -> float | None:
        """Bits per base at the last validation; None without validation."""
        bits: float | None = self.valid.get("valid_bits")
        return bits


@dataclass
class Trainer:
    """Runs the training loop, on every rank.

    Attributes:
        recipe: The recipe.
        engine: The model and its optimizer.
        objective: Batches, loss and validation.
        folder: The folder of the run.
        best: Keeps the best weights by validation and stops early; None for neither.
    """

    recipe: Recipe
    engine: Engine
    objective: Objective
    folder: RunFolder
    best: Best | None = None
    _skipped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.ranks = self.engine.ranks
        self.micro = self.recipe.micro(self.ranks.world)
        self._flops = self.objective.flops_per_token
        on_gpu = self.ranks.device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name(self.ranks.device)) if on_gpu else None

    def run(self) -> Outcome:
        """Train from the newest checkpoint to the last step, or until SIGTERM or SIGHUP.

        Raises:
            UntrustedNumericsError: A loss or a gradient is not finite.
            UserError: A checkpoint cannot be read or written.
        """
        recipe, steps = self.recipe, self.recipe.optimizer.steps
        saved = self.folder.resume(self.engine)
        step, self._skipped = saved["step"], saved.get("skipped", 0)
        if self.best is not None:
            self.best.load_state(saved)
        if step and self.ranks.is_first:
            console.say(f"resuming from step {step:,} of {steps:,}")
        valid: dict[str, Any] = {}
        logger = MetricsLogger(self.folder, steps, step, self._caption(), tracking=recipe.tracking)
        with (
            _stop_flag() as must_stop,
            step_deadline(recipe.guard.step_deadline, self.folder.path, self.ranks) as restart,
            _gc_frozen(),
            logger,
        ):
            last, stopping = self._is_done(step), False
            while not last:
                restart()
                record: dict[str, Any] = {**self.step(step)}
                step += 1
                if step == steps or step % recipe.validation.every == 0:
                    valid = self.validate()
                    record |= valid
                    if self.best is not None:
                        self.best.update(step, valid)
                logger.log(record)
                stopping = self.ranks.any(must_stop())
                last = stopping or self._is_done(step)
                if last or step % recipe.checkpoint.every == 0:
                    restart()
                    state = self.best.state if self.best is not None else {}
                    self.folder.save(step, self.engine, {"skipped": self._skipped, **state})
        # What follows the last step may take long, so a stopping run leaves it to the next one.
        finished = self._is_done(step) and not (stopping and recipe.checkpoint.optimizer)
        if finished and not valid:  # the earlier run was killed after its last step
            valid = self.validate()
        if self.ranks.is_first:
            draw_curve(self.folder)
        return Outcome(step, finished, valid, self._skipped)

    def _is_done(self, step: int) -> bool:
        """Whether training is over after `step` steps, including by early stopping."""
        stops_early = self.best is not None and self.best.should_stop
        return step == self.recipe.optimizer.steps or stops_early

    def step(self, step: int) -> dict[str, Any]:
        """Take one optimizer step (0-based).

        Returns:
            step (1-based), loss (None for a skipped step) and metrics that the objective derives
            from it, learning_rate, gradient_norm, tokens (in total), seconds, rate and rate_per_gpu
            (tokens per second), mfu (if the peak FLOP/s of the GPU are known), memory_gib (peak of
            the fullest GPU), memory_retries (allocation retries so far, if any), skipped (steps in
            total, if any), and with several ranks slowest_rank and slowest_over_median (by busy
            time).
        """
        clock = Clock(self.ranks.device)
        # Seed dropout by the step, so that a resumed run equals an uninterrupted one.
        torch.manual_seed(
            keyed_number(self.recipe.seed, "dropout", step, self.ranks.data_parallel_rank)
        )
        with clock.working():
            batch = self.objective.batch(step)
        rate = learning_rate(step, self.recipe.optimizer)
        loss = self._forward_backward(batch, clock).item()
        norm = self.engine.step(rate)
        finite = math.isfinite(loss + norm)
        if not finite:
            self._skip_or_stop(step + 1, loss, norm, batch)
        return {
            "step": step + 1,
            **self.objective.describe(loss if finite else None),
            "learning_rate": rate,
            "gradient_norm": norm if finite else None,
            "tokens": (step + 1) * self.recipe.batch.tokens,
            **self._speed(clock),
            **({"skipped": self._skipped} if self._skipped else {}),
        }

    def _forward_backward(self, batch: Batch, clock: Clock) -> Tensor:
        """Accumulate the gradient of a step over its micro-batches; returns the weighted mean loss.

        Losses are divided by the total weight of all micro-batches on all ranks, so the result does
        not depend on how the batch is divided.
        """
        total_weight = self.ranks.sum(batch.weights.sum()).clamp_min(1e-6)
        loss = torch.zeros((), device=self.ranks.device)
        for start in range(0, len(batch), self.micro):
            micro = batch[start : start + self.micro]
            with clock.working():
                outputs = self.engine.forward(*micro.inputs)
                micro_loss = self.objective.loss(outputs, micro) / total_weight
            del outputs
            self.engine.backward(micro_loss, last=start + self.micro >= len(batch))
            loss += micro_loss.detach()
        return self.ranks.sum(loss)

    def _speed(self, clock: Clock) -> dict[str, Any]:
        seconds, busy_seconds = clock.read()
        rate = self.recipe.batch.tokens / seconds
        rate_per_gpu = rate / self.ranks.world
        speed: dict[str, Any] = {
            "seconds": round(seconds, 4),
            "rate": round(rate),
            "rate_per_gpu": round(rate_per_gpu),
        }
        if self._peak is not None and self._flops is not None:
            speed["mfu"] = round(rate_per_gpu * self._flops / self._peak, 4)
        if self.ranks.device.type == "cuda":
            peak, retries = map(max, map(self.ranks.all_gather, read_memory(self.ranks.device)))
            speed["memory_gib"] = round(peak, 2)
            if retries:
                speed["memory_retries"] = int(retries)
        if self.ranks.world > 1:
            times = self.ranks.all_gather(busy_seconds)
            speed["slowest_rank"] = times.index(max(times))
            speed["slowest_over_median"] = round(max(times) / statistics.median(times), 2)
        return speed

    def _caption(self) -> str:
        """The caption of the panel: how MFU is computed."""
        if self._flops is None:
            return ""
        flops = f"{self._flops / 1e9:,.2f} GFLOP per token, forward and backward"
        if self._peak is None:
            return f"{flops}, without recomputation"
        return f"MFU = tokens/s/GPU x {flops} / {self._peak / 1e12:,.0f} TFLOP/s"

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Metrics on the held-out sets.

        The weights are those that a checkpoint of this step holds, i.e. the EMA if the recipe keeps
        one.

        Raises:
            UntrustedNumericsError: The loss is not finite.
        """
        self.engine.model.eval()
        with self.engine.ema_weights():
            metrics = self.objective.validate()
        self.engine.model.train()
        return metrics

    def _skip_or_stop(self, step: int, loss: float, norm: float, batch: Batch) -> None:
        guard = self.recipe.guard
        if guard.on_nonfinite == "stop":
            self._stop(step, loss, norm, batch)
        self._skipped += 1
        self.engine.nonfinite_gradient()
        if self._skipped > guard.skip_limit:
            raise UntrustedNumericsError(
                f"step {step}: {counted(self._skipped, 'step was', 'steps were')} not finite, "
                f"more than guard.skip_limit = {guard.skip_limit}; {WAY_OUT}"
            )

    def _stop(self, step: int, loss: float, norm: float, batch: Batch) -> NoReturn:
        """Raise an error that names the rank and the layer, or the gradient, that is not finite."""
        gradient = self.engine.nonfinite_gradient()
        micros = [batch[i : i + self.micro] for i in range(0, len(batch), self.micro)]
        layers = [self._first_nonfinite_layer(micro) for micro in micros]
        bad = [f"the output of {layer}" for layer in layers if layer]
        bad += [f"the gradient of {gradient}"] if gradient else []
        reports = self.ranks.all_gather_text(bad[0] if bad else None)
        rank, what = next(
            ((rank, what) for rank, what in enumerate(reports) if what), (None, "a gradient")
        )
        where = f" on rank {rank}" if self.ranks.world > 1 and rank is not None else ""
        raise UntrustedNumericsError(
            f"step {step}: {what} is not finite{where} (loss {loss}, gradient norm {norm}); "
            f"{WAY_OUT}"
        )

    def _first_nonfinite_layer(self, micro: Batch) -> str | None:
        first, *others = micro.inputs
        return first_nonfinite_layer(
            self.engine.model, first, lambda ids: self.engine.forward(ids, *others)
        )


@contextlib.contextmanager
def _gc_frozen() -> Iterator[None]:
    """Within this context, the garbage collector ignores objects that existed before (`gc.freeze`).

    PyTorch, DeepSpeed and a model create half a million objects. Now and then a collection of all
    of them would stop one rank for 0.2 s in the middle of a step, while the others wait.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM or SIGHUP came; they no longer end the process.

    A signal that is ignored stays ignored.
    """
    received: list[int] = []
    stops = [number for number in handled_stops() if number != signal.SIGINT]
    try:
        before = {
            number: signal.signal(number, lambda number, _frame: received.append(number))
            for number in stops
        }
    except ValueError:  # only the main thread can handle signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
