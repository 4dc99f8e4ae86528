"""One run on one device: steps, validation, checkpoints, and a line of metrics for each.

B windows, L predictions, V vocabulary.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy.typing as npt
import torch
from torch import Tensor

from evo2cli import console
from evo2cli.data.loader import Bytes, WindowLoader, fixed_windows
from evo2cli.errors import UntrustedNumericsError
from evo2cli.training.loss import read_windows, target_weights, weighted_loss
from evo2cli.training.optimizer import make_optimizer
from evo2cli.training.recipe import Recipe
from evo2cli.training.schedule import learning_rate
from evo2cli.training.state import RunFolder
from stripedhyena2 import StripedHyena2, trainable
from stripedhyena2.diagnosis import first_nonfinite_layer

Forward = Callable[[Tensor], Tensor]
NATS_PER_BIT = math.log(2)
_WAY_OUT = "lower learning_rate, or delete the newest checkpoints to go on from before"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Steps done.
        finished: Whether these are all; else the run was asked to stop and saved.
        valid_bits: Bits per base at the last validation, if there was any.
    """

    step: int
    finished: bool
    valid_bits: float | None


class Trainer:
    """A model with its optimizer and its data, at some step of its recipe.

    Args:
        recipe: What to do.
        model: Fresh or loaded weights, in inference form, on the device to train on.
        train: Token arrays to train on.
        valid: Token arrays to validate on; may be empty.
        facts: What else must stay the same between a run and its going on, as JSON values.

    Raises:
        UserError: The output folder will not do.
        ValueError: No array of `train` holds a whole window.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: StripedHyena2,
        train: Sequence[Bytes],
        valid: Sequence[Bytes],
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe, self.model = recipe, model
        self.device = next(model.parameters()).device
        trainable(model)
        model.train()
        self.optimizer = make_optimizer(model, recipe.optimizer)
        self.forward: Forward = torch.compile(model) if recipe.precision.compile else model
        self.loader = WindowLoader(
            train,
            length=recipe.batch.length,
            batch=recipe.batch.sequences,
            seed=recipe.seed,
            reverse_complement=recipe.data.reverse_complement,
        )
        self.valid = fixed_windows(
            valid, length=recipe.batch.length, limit=recipe.validation.windows
        )
        self.train_weights = target_weights(recipe.data.lowercase_weight)
        self.folder = RunFolder(recipe, facts or {})

    def run(self) -> Outcome:
        """Go on from the newest checkpoint to the last step, or until asked to stop.

        Raises:
            UntrustedNumericsError: A loss or a gradient is not finite.
            UserError: A checkpoint cannot be read or written.
        """
        recipe, steps = self.recipe, self.recipe.optimizer.steps
        step = self.folder.resume(self.model, self.optimizer)
        if step:
            console.say(f"going on from step {step:,} of {steps:,}")
        bits: float | None = None
        with _asked_to_stop() as asked, console.progress("train", steps, "steps") as bar:
            bar.advance(step)
            last = step == steps
            while not last:
                record: dict[str, float | None] = {**self.step(step)}
                step += 1
                if step == steps or step % recipe.validation.every == 0:
                    record["valid_bits"] = bits = self.validate()
                self.folder.log(record)
                bar.advance()
                bar.note({"bits": f"{record['bits']:.3f}", "tok/s": f"{record['rate']:,.0f}"})
                last = step == steps or asked()
                if last or step % recipe.checkpoint.every == 0:
                    self.folder.save(step, self.model, self.optimizer)
        if step == steps and bits is None:  # killed after the last step, before the final model
            bits = self.validate()
        return Outcome(step, step == steps, bits)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step.

        Returns:
            step (1-based), loss (nats), bits (a base), learning_rate, gradient_norm, tokens, rate.
        """
        started = time.perf_counter()
        batch = self.recipe.batch
        windows, reverse = self.loader.step(step)
        ids, targets, weights = read_windows(
            self._to_device(windows), self._to_device(reverse), self.train_weights
        )
        rate = learning_rate(step, self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._differentiate(ids, targets, weights).item()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.recipe.optimizer.clip, foreach=True
        ).item()
        if not math.isfinite(loss + norm):
            self._refuse(step + 1, loss, norm, ids)
        self.optimizer.step()
        tokens = batch.sequences * batch.length
        return {
            "step": step + 1,
            "loss": loss,
            "bits": loss / NATS_PER_BIT,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": (step + 1) * tokens,
            "rate": round(tokens / (time.perf_counter() - started)),
        }

    def _differentiate(self, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Leave a step's gradient in the parameters, and return its loss: nats per unit of weight.

        The weight of all micro-batches together divides, so that how a step is cut does not matter.
        """
        self.optimizer.zero_grad()
        micro = self.recipe.batch.micro
        total_weight = weights.sum().clamp_min(1e-6)
        loss = torch.zeros((), device=self.device)
        for start in range(0, len(ids), micro):
            rows = slice(start, start + micro)
            with self._autocast():
                logits = self.forward(ids[rows])
            part = weighted_loss(logits, targets[rows], weights[rows]) / total_weight
            part.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            loss += part.detach()
        return loss

    @torch.no_grad()
    def validate(self) -> float | None:
        """Bits per base on the fixed windows, every A, C, G and T the same; None without any.

        Raises:
            UntrustedNumericsError: They are not finite.
        """
        weight_of_byte = target_weights(lowercase_weight=1.0)
        weight_of_byte[0] = 0
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        total = torch.zeros_like(loss)
        for start in range(0, len(self.valid), self.recipe.batch.micro):
            windows = self._to_device(self.valid[start : start + self.recipe.batch.micro])
            forwards = torch.zeros(len(windows), dtype=torch.bool, device=self.device)
            ids, targets, weights = read_windows(windows, forwards, weight_of_byte)
            with self._autocast():
                logits = self.model(ids)
            loss += weighted_loss(logits, targets, weights)
            total += weights.sum()
        if not total:
            return None
        bits = (loss / total).item() / NATS_PER_BIT
        if not math.isfinite(bits):
            raise UntrustedNumericsError(f"validation: the loss is not finite; {_WAY_OUT}")
        return bits

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        narrow = self.recipe.precision.compute == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=narrow)

    def _refuse(self, step: int, loss: float, norm: float, ids: Tensor) -> NoReturn:
        """Stop the run, naming the layer or else the gradient that is not finite."""
        with self._autocast():
            parts = torch.split(ids, self.recipe.batch.micro)
            layers = [first_nonfinite_layer(self.model, part) for part in parts]
        named = self.model.named_parameters()
        bad = [f"the output of {layer}" for layer in layers if layer]
        bad += [
            f"the gradient of {name}"
            for name, parameter in named
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        raise UntrustedNumericsError(
            f"step {step}: {bad[0] if bad else 'the loss'} is not finite (loss {loss}, gradient "
            f"norm {norm}); {_WAY_OUT}"
        )


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM asks for an orderly end instead of killing the run."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    except ValueError:  # not in the main thread: nothing to listen to
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
