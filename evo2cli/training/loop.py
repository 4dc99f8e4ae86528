"""The training loop: steps, validation, checkpoints, and metrics of each step.

What is learned, an `Objective`, is not its business: next bases in `language`, labels in
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
from evo2cli.data.order import keyed_number
from evo2cli.errors import UntrustedNumericsError, counted
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
        finished: Whether these are all steps that were due, and nothing asked the run to stop in
            the last of them; otherwise it was asked to stop, and saved.
        valid: What the last validation found; empty without validation.
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
    """A run in progress; every rank has one.

    Attributes:
        recipe: The recipe.
        engine: The model, its optimizer and the ranks that share them.
        objective: What the model learns.
        folder: The folder of the run.
        best: Keeps the best weights by validation, and ends a run that no longer improves.
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
        """Train from the newest checkpoint to the last step, or until asked to stop.

        Raises:
            UntrustedNumericsError: A loss or a gradient is not finite.
            UserError: A checkpoint cannot be read or written.
        """
        recipe, steps = self.recipe, self.recipe.optimizer.steps
        saved = self.folder.resume(self.engine)
        step, self._skipped = saved["step"], saved.get("skipped", 0)
        if self.best is not None:
            self.best.resume(saved)
        if step and self.ranks.is_first:
            console.say(f"resuming from step {step:,} of {steps:,}")
        valid: dict[str, Any] = {}
        logger = MetricsLogger(self.folder, steps, step, self._caption(), tracking=recipe.tracking)
        with (
            _stop_requests() as stop_requested,
            step_deadline(recipe.guard.step_deadline, self.folder.path, self.ranks) as restart,
            _garbage_of_the_run(),
            logger,
        ):
            last, asked = self._is_over(step), False
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
                asked = self.ranks.any(stop_requested())
                last = asked or self._is_over(step)
                if last or step % recipe.checkpoint.every == 0:
                    restart()
                    facts = self.best.facts if self.best is not None else {}
                    self.folder.save(step, self.engine, {"skipped": self._skipped, **facts})
        # What follows a last step may take long; a run that can be resumed does it then.
        finished = self._is_over(step) and not (asked and recipe.checkpoint.optimizer)
        if finished and not valid:  # was killed between the last step and the result
            valid = self.validate()
        if self.ranks.is_first:
            draw_curve(self.folder)
        return Outcome(step, finished, valid, self._skipped)

    def _is_over(self, step: int) -> bool:
        """Whether the run ends after `step` steps: all are done, or patience is exhausted."""
        given_up = self.best is not None and self.best.is_over
        return step == self.recipe.optimizer.steps or given_up

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step (0-based).

        Returns:
            step (1-based), loss (None for a skipped step) and what the objective says of it,
            learning_rate, gradient_norm, tokens (in total), seconds, rate and rate_per_gpu (tokens
            per second), mfu (if the peak of the GPU is known), memory_gib (the peak of a GPU),
            memory_retries (how often the fullest GPU stood still for memory so far, if it did),
            skipped (steps in total, if there are any), and with several ranks slowest_rank and
            slowest_over_median (by the time of their own work).
        """
        clock = Clock(self.ranks.device)
        # Dropout depends on the step alone, so that a resumed run draws what a whole one does.
        torch.manual_seed(keyed_number(self.recipe.seed, "dropout", step, self.ranks.group))
        with clock.own():
            batch = self.objective.batch(step)
        rate = learning_rate(step, self.recipe.optimizer)
        loss = self._differentiate(batch, clock).item()
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

    def _differentiate(self, batch: Batch, clock: Clock) -> Tensor:
        """Accumulate the gradient of a step; returns the loss per unit of weight.

        Losses are divided by the total weight of all micro-batches on all ranks, so the result does
        not depend on how a step is divided.
        """
        total_weight = self.ranks.sum(batch.weights.sum()).clamp_min(1e-6)
        loss = torch.zeros((), device=self.ranks.device)
        for start in range(0, len(batch), self.micro):
            micro = batch[start : start + self.micro]
            with clock.own():
                outputs = self.engine.forward(*micro.inputs)
                part = self.objective.loss(outputs, micro) / total_weight
            del outputs
            self.engine.backward(part, last=start + self.micro >= len(batch))
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
        if self._peak is not None and self._flops is not None:
            speed["mfu"] = round(each * self._flops / self._peak, 4)
        if self.ranks.device.type == "cuda":
            peak, retries = map(max, map(self.ranks.gather, read_memory(self.ranks.device)))
            speed["memory_gib"] = round(peak, 2)
            if retries:
                speed["memory_retries"] = int(retries)
        if self.ranks.world > 1:
            times = self.ranks.gather(own)
            speed["slowest_rank"] = times.index(max(times))
            speed["slowest_over_median"] = round(max(times) / statistics.median(times), 2)
        return speed

    def _caption(self) -> str:
        """The formula of the panel's MFU."""
        if self._flops is None:
            return ""
        flops = f"{self._flops / 1e9:,.2f} GFLOP per token, forward and backward"
        if self._peak is None:
            return f"{flops}, without recomputation"
        return f"MFU = tokens/s/GPU x {flops} / {self._peak / 1e12:,.0f} TFLOP/s"

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """What the objective finds on held-out data.

        The model is the one that a checkpoint of this step would have, so with averaged weights if
        the recipe keeps any.

        Raises:
            UntrustedNumericsError: The loss is not finite.
        """
        self.engine.model.eval()
        with self.engine.averaged():
            found = self.objective.validate()
        self.engine.model.train()
        return found

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
        """Stop the run with the rank and the layer, or else the gradient, that is not finite."""
        gradient = self.engine.nonfinite_gradient()
        micros = [batch[i : i + self.micro] for i in range(0, len(batch), self.micro)]
        layers = [self._first_nonfinite_layer(micro) for micro in micros]
        bad = [f"the output of {layer}" for layer in layers if layer]
        bad += [f"the gradient of {gradient}"] if gradient else []
        found = self.ranks.collect(bad[0] if bad else None)
        rank, what = next(
            ((rank, what) for rank, what in enumerate(found) if what), (None, "a gradient")
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
def _garbage_of_the_run() -> Iterator[None]:
    """Within this context, Python looks for garbage only among objects that are new.

    Those of PyTorch, DeepSpeed and a model are half a million: one rank would walk through them for
    0.2 s in the midst of a step, now and then, while the others wait.

    What the caller has frozen stays frozen: Python unfreezes all objects or none.
    """
    if gc.get_freeze_count() > 1000:  # Python itself may freeze some hundreds when it starts
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
