"""The learning rate: up in a line, down in a cosine, and exactly at its ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.training.recipe import Optimizer
from evo2cli.training.schedule import learning_rate


@given(steps=st.integers(2, 300), data=st.data())
def test_the_rate_rises_to_its_peak_and_falls_to_its_minimum(
    steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 2))
    recipe = Optimizer(steps=steps, warmup_steps=warmup, learning_rate=3e-3, min_learning_rate=1e-4)
    rates = [learning_rate(step, recipe) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([3e-3 * (n + 1) / warmup for n in range(warmup)])
    assert rates[warmup] == pytest.approx(3e-3)
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_halfway_down_is_halfway_between() -> None:
    recipe = Optimizer(steps=111, warmup_steps=10, learning_rate=2e-3, min_learning_rate=1e-3)
    assert learning_rate(60, recipe) == pytest.approx(1.5e-3)
