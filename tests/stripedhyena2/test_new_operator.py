"""An operator is its class: with a letter of its own it trains, scores, decodes and is planned.

Two operators that only this test knows: `Scale` remembers nothing, `Average` has a small state.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.training.optimizer import decaying
from evo2cli.training.plan.activations import Dtypes, activations
from evo2cli.training.plan.flops import flops_per_token
from evo2cli.training.plan.hardware import find_accelerator
from evo2cli.training.plan.memory import Setup, memory_per_gpu, sizes
from evo2cli.training.plan.step_time import step_time
from evo2cli.training.recipe import Optimizer
from stripedhyena2 import (
    ConfigError,
    Decoder,
    Mixer,
    ModelConfig,
    Request,
    Sampler,
    StripedHyena2,
    Uniforms,
    generate,
    load,
    save,
    trainable,
)
from stripedhyena2.cache import Past, Slots
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.layouts import vortex
from stripedhyena2.costs import count_parameters, state_bytes
from stripedhyena2.extension import Extension
from stripedhyena2.initial import Draw, constant, normal
from stripedhyena2.mixer import MIXERS
from stripedhyena2.parallelize import Schemes, check_schemes
from stripedhyena2.streaming import Streaming, stream

LENGTH = 40


@dataclass(frozen=True)
class AveragePast:
    """The running average [B, D]."""

    average_BD: Tensor


@dataclass(frozen=True)
class AverageSlots(Slots):
    """The running averages [B, D], changed in place."""

    average_BD: Tensor

    def put(self, row: int, past: AveragePast, length: int) -> None:  # noqa: ARG002 - of any length
        self.average_BD[row] = past.average_BD[0]

    def state(self) -> tuple[Tensor, ...]:
        return (self.average_BD,)


class Growth(nn.Module):
    """The form in which the average's gains train."""

    def forward(self, log_gain_D: Tensor) -> Tensor:
        return log_gain_D.exp()

    def right_inverse(self, gain_D: Tensor) -> Tensor:
        return gain_D.log()


@pytest.fixture(autouse=True)
def operators() -> Iterator[None]:
    """Two more letters, for as long as a test runs."""
    known = dict(MIXERS)

    class Scale(Mixer, letter="X"):
        title = "scale"
        colour = "red"

        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.gain_D = nn.Parameter(torch.empty(config.width))

        def forward(self, x_BLD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
            return self.project_out(self._mix(self.project_in(x_BLD))), past

        def step(self, z_B1C: Tensor, slots: Slots) -> Tensor:  # noqa: ARG002 - none
            return self._mix(z_B1C)

        def _mix(self, z_BLC: Tensor) -> Tensor:
            q_BLD, k_BLD, v_BLD = z_BLC.chunk(3, dim=2)
            return self.gain_D * v_BLD + q_BLD * k_BLD

        @classmethod
        def initial(cls, config: ModelConfig) -> dict[str, Draw]:
            return {**super().initial(config), "gain_D": normal(1)}

        @classmethod
        def flops(cls, config: ModelConfig, length: int) -> int:  # noqa: ARG003
            return 3 * config.width

        @classmethod
        def check_exchange(cls, config: ModelConfig, scheme: str, count: int) -> None:
            """Needs no exchange."""

    class Average(Mixer, letter="Y"):
        title = "running average"

        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.gain_D = nn.Parameter(torch.empty(config.width))

        def forward(self, x_BLD: Tensor, past: AveragePast | None) -> tuple[Tensor, AveragePast]:
            z_BLC = self.project_in(x_BLD)
            average_BD = past.average_BD if past else torch.zeros_like(x_BLD[:, 0])
            y_LBD = []
            for z_BC in z_BLC.unbind(1):
                average_BD = self._next(average_BD, z_BC)
                y_LBD.append(self.gain_D * average_BD)
            return self.project_out(torch.stack(y_LBD, dim=1)), AveragePast(average_BD)

        def step(self, z_B1C: Tensor, slots: AverageSlots) -> Tensor:
            slots.average_BD.copy_(self._next(slots.average_BD, z_B1C[:, 0]))
            return (self.gain_D * slots.average_BD)[:, None]

        def _next(self, average_BD: Tensor, z_BC: Tensor) -> Tensor:
            return 0.9 * average_BD + 0.1 * z_BC.chunk(3, dim=1)[2]

        def new_slots(
            self, batch_size: int, capacity: int, lengths_B: Tensor, *, float8: bool = False
        ) -> AverageSlots:
            del capacity, lengths_B, float8
            weight = self.project_out.weight
            return AverageSlots(weight.new_zeros(batch_size, weight.shape[0]))

        def training_forms(self, context: int, *, published: bool) -> dict[str, nn.Module]:
            del context, published
            return {"gain_D": Growth()}

        @classmethod
        def initial(cls, config: ModelConfig) -> dict[str, Draw]:
            return {**super().initial(config), "gain_D": constant(2)}

        @classmethod
        def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:  # noqa: ARG003
            return config.width * element

        @classmethod
        def saved_bytes(cls, config: ModelConfig, element: int) -> float:
            return super().saved_bytes(config, element) + element * config.width

    yield
    MIXERS.clear()
    MIXERS.update(known)


def shape(stripes: str = "SXYA") -> ModelConfig:
    return ModelConfig(
        stripes=stripes,
        width=32,
        num_heads=2,
        mlp_width=48,
        num_short_filter_groups=4,
        num_medium_filter_groups=4,
        context=64,
    )


@pytest.fixture
def model() -> StripedHyena2:
    return StripedHyena2.from_seed(shape(), seed=0).double().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(65, 85, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def near(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_a_step_trains_it_in_its_form(ids: Tensor) -> None:
    model = StripedHyena2.from_seed(shape(), seed=0)
    assert model.mixers[2].gain_D.eq(2).all()
    trainable(model, context=64)
    form = "blocks.2.mixer.parametrizations.gain_D.original"
    near(dict(model.named_parameters())[form], torch.full((32,), math.log(2)))
    F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    recipe = Optimizer(steps=2, warmup_steps=1, learning_rate=1e-3, min_learning_rate=0)
    assert "blocks.1.mixer.project_in.weight" in decaying(model, recipe)
    assert not {form, "blocks.1.mixer.gain_D"} & decaying(model, recipe)


@torch.no_grad()
def test_chunks_and_streams_give_the_whole(model: StripedHyena2, ids: Tensor) -> None:
    whole = model(ids)
    for capacity in (None, LENGTH):
        cache = model.new_cache(2, capacity=capacity)
        near(torch.cat([model(chunk, cache=cache) for chunk in ids.split(7, dim=1)], 1), whole)
    for offload in (False, True):
        pieces = [x for _, x in stream(model, ids, Streaming(16, offload)) if x is not None]
        near(torch.cat(pieces, dim=1), whole)


@torch.no_grad()
def test_token_by_token_gives_the_whole(model: StripedHyena2, ids: Tensor) -> None:
    whole, prompts = model(ids), (5, 11)
    decoder = Decoder(model, 2, LENGTH)
    for row, prompt in enumerate(prompts):
        cache = decoder.new_cache(row)
        model(ids[row : row + 1, :prompt], cache=cache)
        decoder.place(row, cache)
    for t in range(12):
        logits = decoder.step(torch.stack([ids[row, n + t] for row, n in enumerate(prompts)]))
        near(logits, torch.stack([whole[row, n + t] for row, n in enumerate(prompts)]))


def test_greedy_generation_is_the_likeliest_token(model: StripedHyena2, ids: Tensor) -> None:
    prompt = ids[0, :9]
    (sample,) = generate(model, [Request(prompt, 6, Uniforms(0))], Sampler(top_k=1))
    whole = prompt
    for _ in range(6):
        with torch.no_grad():
            whole = torch.cat([whole, model(whole[None])[0, -1:].argmax(1)])
    assert sample.ids == whole[9:].tolist()


def test_it_is_planned() -> None:
    config, plain = shape(), shape("SSSA")
    width = config.width
    own, known = (flops_per_token(c, LENGTH) for c in (shape("SX"), shape("S")))
    assert own.operators - known.operators == 3 * width
    counts = sizes(config)
    assert counts.all == count_parameters(config)
    assert state_bytes(config, 10) - state_bytes(shape("SA"), 10) == 2 * width
    dtypes = Dtypes(2, 2)
    one, two = (activations(c, dtypes, tokens=1, checkpointing=0).at_loss for c in (plain, config))
    assert two - one == 2 * width  # of the average, beside what every operator keeps
    setup = Setup(
        gpus=8, zero=1, length=64, micro=1, accumulation=1, checkpointing=1, compute="bf16"
    )
    gpu = find_accelerator("h100-80gb")
    assert gpu is not None
    assert memory_per_gpu(config, counts, setup).total > 0
    assert step_time(config, counts, setup, gpu, tokens=64).operators > 0


def test_ranks_share_it_if_it_says_so() -> None:
    check_schemes(shape("SX"), Schemes(), 4)
    with pytest.raises(ValueError, match=r"context = 4: running average \(Y\) cannot compute on"):
        check_schemes(shape("SY"), Schemes(), 4)


def test_it_is_saved_loaded_extended_and_printed(
    model: StripedHyena2, ids: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save(model, folder, {})
    assert torch.equal(load(folder, dtype=torch.float64)(ids), model(ids))
    assert Extension(128).apply(read_checkpoint(folder)).config.stripes == "SXYA"
    result = CliRunner().invoke(app, ["info", str(folder)])
    assert "SXYA" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["info", str(folder), "--json"]).stdout)
    assert found["parameters"] == count_parameters(shape())
    with pytest.raises(ConfigError, match=r"released layout does not support scale \(X\)"):
        vortex.write(read_checkpoint(folder), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_letter_stands_for_one_operator() -> None:
    with pytest.raises(ValueError, match="'X' already stands for scale"):

        class _Another(Mixer, letter="X"):
            pass

    with pytest.raises(
        ValueError, match=r"no operator has the letter 'Z'; letters are .*X \(scale"
    ):
        shape("SZ")
