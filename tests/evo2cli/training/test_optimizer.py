"""The rate rises and falls exactly between its ends; decay pulls on the matrices alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.training.optimizer import decaying, learning_rate, make_optimizer
from evo2cli.training.recipe import Optimizer
from stripedhyena2 import ModelConfig, StripedHyena2, trainable

MATRICES = ("project_in.weight", "project_out.weight", "gate.weight", "up.weight", "down.weight")


def test_every_parameter_trains_once_and_decays_where_it_should(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    trainable(model, model.config.context)
    recipe = Optimizer(
        steps=10, warmup_steps=1, learning_rate=1e-3, min_learning_rate=0, weight_decay=0.3
    )
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, recipe).param_groups
        for parameter in group["params"]
    }
    names = dict(model.named_parameters())
    assert sorted(decay_of) == sorted(map(id, names.values()))
    decayed = {name for name, parameter in names.items() if decay_of[id(parameter)] == 0.3}
    assert decayed == {name for name in names if name.endswith(MATRICES)}
    assert len(decayed) == tiny_config.depth * len(MATRICES)
    free = set(names) - decayed
    assert all(decay_of[id(names[name])] == 0 for name in free)
    for kind in ("embedding", "scale", "bias", "taps", "log_poles", "residues", "skip"):
        assert any(kind in name for name in free), kind


def test_the_published_decay_spares_biases_and_mr_taps_alone(tiny_config: ModelConfig) -> None:
    """By accident Savanna decays poles, other taps, skips, norms and the embedding too."""
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    trainable(model, tiny_config.context, published=True)
    recipe = Optimizer(
        steps=10,
        warmup_steps=1,
        learning_rate=1e-3,
        min_learning_rate=0,
        decay="evo2-published",
    )
    free = {name for name, _ in model.named_parameters()} - decaying(model, recipe)
    kinds = {name.split(".", 2)[-1] for name in free}
    assert kinds == {"mixer.project_out.bias", "mixer.operator.parametrizations.taps_GK.original"}
    assert len([name for name in free if "taps_GK" in name]) == tiny_config.stripes.count("M")


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
