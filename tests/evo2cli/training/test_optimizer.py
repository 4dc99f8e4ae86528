"""Decay pulls on the matrices of projections and MLPs, and on nothing else."""

from evo2cli.training.optimizer import decaying, make_optimizer
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
