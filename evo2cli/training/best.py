"""Keep the best weights of a run by a validation metric, and stop early if it stalls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Best:
    """The best validation so far; identical on all ranks.

    Attributes:
        metric: Key of the metric in the results of a validation.
        higher_is_better: Whether higher values are better.
        patience: Stop after this many validations without improvement; None for no early stopping.
        save: Saves the weights after a given number of steps; all ranks call it together.
        value: Best value of the metric; None before the first validation.
        step: Number of steps after which it was reached.
    """

    metric: str
    higher_is_better: bool
    patience: int | None
    save: Callable[[int], object]
    value: float | None = field(default=None, init=False)
    step: int = field(default=0, init=False)
    _waited: int = field(default=0, init=False)

    def update(self, step: int, valid: Mapping[str, Any]) -> None:
        """Record a validation; save the weights if it is the best so far."""
        value = valid.get(self.metric)
        if value is None:
            return
        if self.value is None or (
            value > self.value if self.higher_is_better else value < self.value
        ):
            self.value, self.step, self._waited = value, step, 0
            self.save(step)
        else:
            self._waited += 1

    @property
    def should_stop(self) -> bool:
        """Whether the patience is exhausted, so that the run stops early."""
        return self.patience is not None and self._waited >= self.patience

    @property
    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint, as JSON values."""
        return {"best": {"value": self.value, "step": self.step, "waited": self._waited}}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        if state := saved.get("best"):
            self.value, self.step, self._waited = state["value"], state["step"], state["waited"]
