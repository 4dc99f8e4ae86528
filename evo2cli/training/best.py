"""The best weights of a run by a metric of its validations, and when to give up on better ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Best:
    """The best validation so far; all ranks update it alike.

    Attributes:
        metric: Key of what a validation finds.
        larger: Whether larger values are better.
        patience: Validations without an improvement after which a run ends; None to go on.
        keep: Writes the weights of a step; all ranks call it together.
        value: The best value; None before the first.
        step: The number of steps after which it was found.
    """

    metric: str
    larger: bool
    patience: int | None
    keep: Callable[[int], object]
    value: float | None = field(default=None, init=False)
    step: int = field(default=0, init=False)
    _waited: int = field(default=0, init=False)

    def update(self, step: int, valid: Mapping[str, Any]) -> None:
        """Compare a validation with the best so far, and keep the weights if it is better."""
        value = valid.get(self.metric)
        if value is None:
            return
        if self.value is None or (value > self.value if self.larger else value < self.value):
            self.value, self.step, self._waited = value, step, 0
            self.keep(step)
        else:
            self._waited += 1

    @property
    def is_over(self) -> bool:
        """Whether the patience is exhausted, so that the run ends."""
        return self.patience is not None and self._waited >= self.patience

    @property
    def facts(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON values."""
        return {"best": {"value": self.value, "step": self.step, "waited": self._waited}}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Restore the state that a checkpoint holds."""
        if found := saved.get("best"):
            self.value, self.step, self._waited = found["value"], found["step"], found["waited"]
