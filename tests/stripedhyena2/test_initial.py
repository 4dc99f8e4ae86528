"""Fresh weights: range, mean and deviation of every kind of parameter, and a seed's own values."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stripedhyena2 import ModelConfig, StripedHyena2, initial
from stripedhyena2.assembly import assemble
from stripedhyena2.initial import Draw, normal, uniform
from stripedhyena2.model import initial_values
from stripedhyena2.twister import jump

# Many values of every kind, and no two sizes equal.
CONFIG = ModelConfig(
    stripes="SMLA",
    width=288,
    num_heads=4,
    mlp_width=320,
    num_short_filter_groups=288,
    num_medium_filter_groups=144,
    context=400,
    num_short_taps=9,
    num_medium_taps=64,
    num_featurizer_taps=4,
)
NORMAL = {  # the deviation of a normal distribution around 0
    "embedding.weight": math.sqrt(2 / (5 * 288)),
    "mlp.gate.weight": math.sqrt(2 / (5 * 288)),
    "mlp.up.weight": math.sqrt(2 / (5 * 288)),
    "mixer.project_in.weight": math.sqrt(2 / (5 * 288)),
    "mlp.down.weight": 2 / (4 * math.sqrt(288)),
    "mixer.project_out.weight": 2 / (4 * math.sqrt(288)),
    "1.mixer.operator.taps_GK": 1e-5 / math.sqrt(400),
    "mixer.operator.residues_DS": 0.1 / math.sqrt(16),
}
UNIFORM = {  # the ends of a range
    "mixer.operator.featurizer_taps_CK": (-0.5, 0.5),
    "0.mixer.operator.taps_GK": (-0.5, 0.5),
    "mixer.operator.log_poles_DS": (-0.1 / math.e, -0.01 / math.e),
}
CONSTANT = {"scale": 1.0, "skip_D": 0.0, "project_out.bias": 0.0}
PINNED = {
    "embedding.weight": 0.014744303189218044,
    "mixer.project_in.weight": -0.04151131957769394,
    "mixer.operator.featurizer_taps_CK": 0.1653200387954712,
    "0.mixer.operator.taps_GK": -0.24276351928710938,
    "mixer.project_out.weight": -0.004621801432222128,
    "mlp.gate.weight": 0.012192818336188793,
    "mlp.up.weight": -0.0030922575388103724,
    "mlp.down.weight": 0.04747729003429413,
    "1.mixer.operator.taps_GK": -8.844963872434164e-07,
    "mixer.operator.log_poles_DS": -0.018658271059393883,
    "mixer.operator.residues_DS": -0.007348279934376478,
}


def fresh(config: ModelConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = StripedHyena2(config)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, initial_values(model, seed), strict=True))


def kind_of(name: str) -> str:
    (kind,) = (kind for kind in (*NORMAL, *UNIFORM, *CONSTANT) if name.endswith(kind))
    return kind


def test_every_parameter_has_its_distribution() -> None:
    """Within five standard errors of each statistic."""
    kinds = set()
    for name, tensor in fresh().items():
        kinds.add(kind := kind_of(name))
        values, error = tensor.double().flatten(), 5 / math.sqrt(tensor.numel())
        if kind in CONSTANT:
            assert (values == CONSTANT[kind]).all(), name
            continue
        assert tensor.numel() > 2000, name
        if kind in NORMAL:
            mean, deviation, inside = 0.0, NORMAL[kind], math.erf(1 / math.sqrt(2))
            assert 3 * deviation < values.abs().max() < 6 * deviation, name
        else:
            low, high = UNIFORM[kind]
            mean, deviation, inside = (low + high) / 2, (high - low) / math.sqrt(12), 3**-0.5
            margin = 0.01 * (high - low)
            assert low <= values.min() < low + margin, name
            assert high - margin < values.max() <= high, name
        assert float(values.mean()) == pytest.approx(mean, abs=error * deviation), name
        assert float(values.std()) == pytest.approx(deviation, rel=error), name
        # The shape: 68 % of a normal distribution lie within one deviation, 58 % of a uniform one.
        near = float(((values - mean).abs() < deviation).double().mean())
        assert near == pytest.approx(inside, abs=error / 2), name
    assert kinds == {*NORMAL, *UNIFORM, *CONSTANT}


def test_filters_of_mr_start_as_the_first_context_says() -> None:
    """An extended context does not shrink them."""
    taps = fresh(replace(CONFIG, context=40_000, base_context=400))[
        "blocks.1.mixer.operator.taps_GK"
    ]
    assert torch.equal(taps, fresh()["blocks.1.mixer.operator.taps_GK"])


@pytest.mark.parametrize("draw", [normal(2.0), uniform(-1.0, 3.0)], ids=["normal", "uniform"])
@pytest.mark.parametrize("size", [1, 15, 2048, 8191, 8192, 10_007])
def test_pieces_hold_the_numbers_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, draw: Draw, size: int
) -> None:
    """Drawn by threads or not; and the generator goes on from the same place."""
    found = []
    for piece in (2**40, 2048):
        monkeypatch.setattr(initial, "PIECE", piece)
        generator = torch.Generator().manual_seed(3)
        values = torch.empty(size)
        draw(torch.empty(5), generator)
        draw(values, generator)
        found.append(torch.cat([values, torch.empty(20).uniform_(generator=generator)]))
    assert torch.equal(*found)


@pytest.mark.parametrize("count", [0, 1, 623, 624, 625, 20_000, 2**20])
@pytest.mark.parametrize("used", [0, 1, 623, 624, 1000])
def test_a_generator_jumps_where_draws_lead(count: int, used: int) -> None:
    """Torch keeps the state where `twister` expects it."""
    walking, jumping = (torch.Generator().manual_seed(5) for _ in range(2))
    for generator, draws in ((walking, used + count), (jumping, used)):
        torch.empty(draws, dtype=torch.int32).random_(generator=generator)
    jump(jumping, count)
    first, second = (torch.empty(2000).uniform_(generator=g) for g in (walking, jumping))
    assert torch.equal(first, second)


def test_layers_are_built_without_numbers_that_are_overwritten() -> None:
    state = torch.get_rng_state()
    with initial.Uninitialized():
        nn.Linear(4, 4)
        nn.Embedding(4, 4)
    StripedHyena2.from_seed(CONFIG, 0)
    assemble(CONFIG, adopt=lambda part: part)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_parameters_share_their_numbers() -> None:
    drawn = [x for name, x in fresh().items() if kind_of(name) not in CONSTANT]
    firsts = [float(x.flatten()[0] / x.std()) for x in drawn]
    assert len(set(firsts)) == len(firsts)


def test_a_seed_has_its_values_on_every_machine() -> None:
    """Written down for the first of every kind; CPUs differ in the last bits at most."""
    found = {}
    for name, tensor in fresh(seed=7).items():
        if (kind := kind_of(name)) not in CONSTANT:
            found.setdefault(kind, float(tensor.flatten()[1]))
    assert found == {kind: pytest.approx(value, rel=1e-5) for kind, value in PINNED.items()}
